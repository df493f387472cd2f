// The norm of each tensor of a list, for CPU tensors.
#include "args/ops.h"
#include "args/step_args.h"
#include "cpu/norm_launch.h"

namespace ft {
namespace {

using torch::headeronly::ScalarType;

constexpr const char* kNorms = "tensor_norms";

// A run of so many elements is shared by all threads. Shorter ones are measured by one thread each.
constexpr int64_t kShared = 8 * kChunk;

double norm_together(const Run& run, double p) {
  Chunker chunker;
  chunker.add(0, run.numel);
  return norm_of(chunker.finish(), p, [&](int64_t) { return run; }).value;
}

// In the chunks, and so to the very bits, of norm_together.
double norm_alone(const Run& run, double p) {
  const auto reduce = [&](Reduction reduction, int exponent) {
    double total = 0;
    for (int64_t begin = 0; begin < run.numel; begin += kChunk) {
      const int64_t size = std::min(kChunk, run.numel - begin);
      total = combine(reduction, total, reduce_chunk(reduction, run, begin, size, exponent, p));
    }
    return total;
  };
  return norm_from(p, reduce).value;
}

template <class T>
void write_norms(const std::vector<Run>& runs, double p, T* norms) {
  Chunker chunker;
  for (size_t i = 0; i < runs.size(); ++i) {
    if (runs[i].numel >= kShared) {
      norms[i] = T(norm_together(runs[i], p));
    } else {
      norms[i] = 0;  // what an empty run, which has no chunk, stays at
      chunker.add(int64_t(i), runs[i].numel, kShared);
    }
  }
  const ChunkList work = chunker.finish();
  const bool has_powers = p != 1 && p != 2 && !std::isinf(p);
  const int64_t serial = serial_elements(has_powers ? Reduction::kPowers : Reduction::kSquares);
  for_tasks(work, serial, false, [&](int64_t task) {
    for (int64_t k = work.tasks[task]; k < work.tasks[task + 1]; ++k) {
      const size_t row = size_t(work.chunks[k].row);
      norms[row] = T(norm_alone(runs[row], p));
    }
  });
}

}  // namespace

Tensor tensor_norms(const TensorList& tensors, double norm_type) {
  require(norm_type > 0, kNorms, "norm_type is ", norm_type, "; it must be > 0, or inf");
  const Runs list(kNorms, "tensors", tensors);
  bool is_double = false;
  for (const Run& run : list.runs) is_double |= run.dtype == DType::kDouble;
  Tensor norms = torch::stable::empty({int64_t(list.runs.size())}, is_double ? ScalarType::Double : ScalarType::Float);
  is_double ? write_norms(list.runs, norm_type, norms.mutable_data_ptr<double>())
            : write_norms(list.runs, norm_type, norms.mutable_data_ptr<float>());
  return norms;
}

}  // namespace ft
