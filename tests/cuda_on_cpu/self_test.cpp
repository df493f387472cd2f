// The emulator itself: a sum that needs every primitive.
#include <cstdio>
#include <cuda/launch.cuh>
#include <vector>

#include "cuda/block.cuh"

namespace {

__global__ void sum_kernel(const float* x, int64_t n, double* partial, unsigned* ticket, double* total) {
  __shared__ double scratch[32];
  __shared__ int flag;
  double sum = 0;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += int64_t(gridDim.x) * blockDim.x) {
    sum += x[i];
  }
  sum = ft::reduce_block(sum, scratch, [](double a, double b) { return a + b; });
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
  if (!ft::is_last_block(ticket, gridDim.x, &flag)) return;
  if (threadIdx.x == 0) {
    double all = 0;
    for (unsigned b = 0; b < gridDim.x; ++b) all += partial[b];
    *total = all;
  }
}

}  // namespace

int main() {
  std::vector<float> x(1000);
  for (size_t i = 0; i < x.size(); ++i) x[i] = float(i);
  std::vector<double> partial(3);
  unsigned ticket = 0;
  double total = 0;
  for (int k = 0; k < 2; ++k) {
    if (ft::launch(&sum_kernel, 3, 128, nullptr, x.data(), int64_t(x.size()), partial.data(), &ticket, &total))
      return 1;
    if (total != 499500 || ticket != 0) return std::printf("sum is %g\n", total), 1;
  }
  std::puts("passed");
}
