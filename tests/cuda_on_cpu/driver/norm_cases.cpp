// The norm of many tensors, the norm of each of them, and gradients scaled to the former.
#include <limits>
#include <vector>

#include "cuda/table.h"
#include "driver/check.h"
#include "rules/updates.h"

namespace ft {
namespace {

// Several chunks, odd sizes, none, and many of one.
const std::vector<std::vector<int64_t>> kLists = {
    {0}, {1}, {7, 0, 1}, {0, 8193, 0, 3}, {20000, 5}, std::vector<int64_t>(70, 3)};

struct Gradients {
  std::vector<Buffer> buffers;
  std::vector<DeviceRun> runs;

  Gradients(const std::vector<int64_t>& sizes, DType dtype, int64_t offset) {
    for (size_t i = 0; i < sizes.size(); ++i) {
      buffers.emplace_back(dtype, sizes[i], offset * size_of(dtype));
      buffers.back().fill(int(i));
    }
    for (Buffer& x : buffers) runs.push_back({x.data(), x.numel(), dtype});
  }
};

double norm_of(const Buffer* first, const Buffer* last, double p) {
  double sum = 0;
  for (const Buffer* x = first; x < last; ++x) {
    for (int64_t i = 0; i < x->numel(); ++i) {
      const double magnitude = std::abs(x->get(i));
      sum = std::isinf(p) ? std::fmax(sum, magnitude) : sum + std::pow(magnitude, p);
    }
  }
  return std::isinf(p) ? sum : std::pow(sum, 1 / p);
}

bool is_near(double norm, double exact) { return std::abs(norm - exact) <= 1e-12 * (exact + 1e-300); }

void each(Tally& tally, const std::vector<Buffer>& buffers, const DeviceTable<DeviceRun>& table, NormArgs args) {
  const int64_t count = int64_t(buffers.size());
  Buffer norms(DType::kDouble, count);
  args.norm = {norms.data(), DType::kDouble};
  args.nonfinite = {};
  for (int repeat = 0; repeat < 2; ++repeat) {  // the second finds what the first has left
    norms.fill_with(-1);
    tally.expect(ft_cuda_tensor_norms(&table, &args, nullptr) == cudaSuccess, "norms: refused");
    for (int64_t i = 0; i < count; ++i) {
      const Buffer* const x = buffers.data() + i;
      const double exact = norm_of(x, x + 1, args.norm_type);
      tally.expect(is_near(norms.get(i), exact), "norm %lld of %lld, order %g, type %d: %.17g, not %.17g", i, count,
                   args.norm_type, int(x->dtype()), norms.get(i), exact);
    }
  }
}

void one(Tally& tally, const std::vector<int64_t>& sizes, DType dtype, int64_t offset, double p) {
  Gradients grads(sizes, dtype, offset);
  const double exact = norm_of(grads.buffers.data(), grads.buffers.data() + sizes.size(), p);
  const TableLayout<DeviceRun> layout(grads.runs.data(), int64_t(grads.runs.size()), 0);
  std::vector<double> memory(size_t(std::max(layout.bytes, layout.bytes_by_chunk()) / 8 + 2));
  char* const base = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(memory.data()) + 15) / 16 * 16);
  tally.expect(layout.upload(grads.runs.data(), nullptr, base, nullptr) == cudaSuccess, "norm: no upload");
  const DeviceTable<DeviceRun> table = layout.table(base);
  double norm = -1, nonfinite = -1;
  NormArgs args;
  args.norm_type = p;
  args.has_double = dtype == DType::kDouble;
  args.partials = layout.partial(base);
  args.tickets = layout.counter(base, layout.kNormTicket);
  args.norm = {&norm, DType::kDouble};
  args.nonfinite = {&nonfinite, DType::kDouble};
  for (int repeat = 0; repeat < 2; ++repeat) {  // the second finds what the first has left
    tally.expect(ft_cuda_norm_of_runs(&table, &args, nullptr) == cudaSuccess, "norm: refused");
    tally.expect(is_near(norm, exact) && nonfinite == 0, "norm of order %g, type %d, %d tensors: %.17g, not %.17g", p,
                 int(dtype), int(sizes.size()), norm, exact);
  }
  args.tickets = layout.pending(base);
  each(tally, grads.buffers, table, args);
  const double max_norm = exact / 2, coef = clip_coefficient(norm, max_norm);
  std::vector<std::vector<double>> before;
  for (Buffer& x : grads.buffers) {
    before.emplace_back();
    for (int64_t i = 0; i < x.numel(); ++i) before.back().push_back(x.get(i));
  }
  tally.expect(ft_cuda_clip_scale(&table, args.norm, max_norm, nullptr) == cudaSuccess, "scale: refused");
  for (size_t k = 0; k < grads.buffers.size(); ++k) {
    const Buffer& x = grads.buffers[k];
    for (int64_t i = 0; i < x.numel(); ++i) {
      tally.expect(tally.near(x.get(i), before[k][size_t(i)] * coef, dtype), "scale, type %d, tensor %d, element %lld",
                   int(dtype), int(k), i);
    }
    tally.expect(x.intact(), "scale: wrote before a tensor");
  }
  ++tally.cases;
}

}  // namespace

void cases(Tally& tally) {
  if (tally.few) {
    one(tally, {20000, 5, 0, 9000}, DType::kFloat, 0, 2);
    one(tally, {20000, 5}, DType::kDouble, 0, 3);
    return;
  }
  for (const DType dtype : kAllTypes) {
    for (const std::vector<int64_t>& sizes : kLists) one(tally, sizes, dtype, 0, 2);
    for (const double p : {1.0, 2.5, std::numeric_limits<double>::infinity()}) one(tally, {100, 8200}, dtype, 0, p);
    for (int64_t offset = 1; offset < 16 / size_of(dtype); ++offset) one(tally, {77, 8200}, dtype, offset, 2);
  }
}

}  // namespace ft
