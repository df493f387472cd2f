// The norm of a list of tensors, and the scaling of gradients to a norm, for CPU tensors.
#include "args/ops.h"
#include "args/step_args.h"
#include "cpu/norm_launch.h"
#include "cpu/step_launch.h"

namespace ft {
namespace {

using torch::headeronly::ScalarType;

constexpr const char* kNorm = "global_norm";
constexpr const char* kScale = "clip_scale_";

ChunkList plan(const Runs& list, Chunker& chunker) {
  for (size_t i = 0; i < list.runs.size(); ++i) chunker.add(int64_t(i), list.runs[i].numel);
  return chunker.finish();
}

Tensor new_scalar(double value, ScalarType dtype) {
  Tensor x = torch::stable::empty({}, dtype);
  if (dtype == ScalarType::Double) {
    *x.mutable_data_ptr<double>() = value;
  } else {
    *x.mutable_data_ptr<float>() = float(value);
  }
  return x;
}

template <class C>
void scale_chunk(const Run& run, const Chunk& chunk, double coef) {
  const StepKernels<C>& kernels = step_kernels<C>();
  char* x = static_cast<char*>(const_cast<void*>(run.x)) + chunk.begin * size_of(run.dtype);
  if (size_of(run.dtype) == int64_t(sizeof(C))) {
    kernels.scale(reinterpret_cast<C*>(x), C(coef), reinterpret_cast<C*>(x), chunk.size);
    return;
  }
  alignas(64) C buffer[kBufferSize];
  for (int64_t i = 0; i < chunk.size; i += kBufferSize) {
    const int64_t n = std::min(kBufferSize, chunk.size - i);
    char* block = x + i * size_of(run.dtype);
    kernels.load[int(run.dtype)](block, buffer, n);
    kernels.scale(buffer, C(coef), buffer, n);
    kernels.store[int(run.dtype)](buffer, block, n);
  }
}

}  // namespace

std::tuple<Tensor, Tensor> global_norm(const TensorList& tensors, double norm_type) {
  require(norm_type > 0, kNorm, "norm_type is ", norm_type, "; it must be > 0, or inf");
  const Runs list(kNorm, "tensors", tensors);
  Chunker chunker;
  const Norm norm = norm_of(plan(list, chunker), norm_type, [&](int64_t row) { return list.runs[size_t(row)]; });
  ScalarType dtype = ScalarType::Float;
  for (const Run& run : list.runs) dtype = run.dtype == DType::kDouble ? ScalarType::Double : dtype;
  return {new_scalar(norm.value, dtype), new_scalar(norm.nonfinite ? 1 : 0, ScalarType::Float)};
}

void clip_scale_(const TensorList& grads, const Tensor& norm, double max_norm) {
  check_scaled(kScale, grads, max_norm);
  const ScalarRef total = check_scalar(kScale, "norm", norm);
  const double coef = clip_coefficient(read(total), max_norm);
  if (coef >= 1) return;
  const Runs list(kScale, "grads", grads);
  Chunker chunker;
  const ChunkList work = plan(list, chunker);
  for_tasks(work, int64_t{1} << 16, true, [&](int64_t task) {
    for (int64_t i = work.tasks[task]; i < work.tasks[task + 1]; ++i) {
      const Chunk& chunk = work.chunks[i];
      const Run& run = list.runs[size_t(chunk.row)];
      run.dtype == DType::kDouble ? scale_chunk<double>(run, chunk, coef) : scale_chunk<float>(run, chunk, coef);
    }
  });
  list.put_back(grads);
}

}  // namespace ft
