// In the place of csrc/cuda/launch.cuh: launches on the CPU.
#pragma once
#include <cuda_runtime.h>

#include <tuple>
#include <utility>

namespace ft {

template <class... Parameters, class... Args>
cudaError_t launch(void (*kernel)(Parameters...), int64_t blocks, int threads, cudaStream_t, Args&&... args) {
  if (blocks < 1 || blocks > 0x7fffffff) return cudaErrorInvalidConfiguration;
  if (emu::launch_fails()) return cudaErrorLaunchOutOfResources;
  std::tuple<Parameters...> values(std::forward<Args>(args)...);
  emu::launch({unsigned(blocks)}, {unsigned(threads)}, [&] { std::apply(kernel, values); });
  return cudaSuccess;
}

template <auto kernel>
cudaError_t resident_blocks(int, int64_t* blocks) {
  *blocks = emu::resident_blocks();
  return cudaSuccess;
}

}  // namespace ft
