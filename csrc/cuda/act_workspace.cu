// How much memory the sums of a gradient need besides their result.
#include "cuda/act_columns.cuh"

extern "C" int64_t ft_cuda_act_workspace(int64_t numel, int64_t width, ft::DType dtype, bool gated) {
  return ft::ColumnPlan::of(numel, width).take(nullptr, gated ? 2 : 1, dtype == ft::DType::kDouble ? 8 : 4);
}
