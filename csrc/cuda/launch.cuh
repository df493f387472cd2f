// How a kernel is launched, apart from the kernels: they are plain CUDA and know nothing of it.
#pragma once
#include <cuda_runtime.h>

#include <atomic>
#include <tuple>
#include <utility>

namespace ft {

// Launches kernel(args...) on a stream. The arguments take the types of the kernel's parameters.
template <class... Parameters, class... Args>
cudaError_t launch(void (*kernel)(Parameters...), int64_t blocks, int threads, cudaStream_t stream, Args&&... args) {
  std::tuple<Parameters...> values(std::forward<Args>(args)...);
  return std::apply(
      [&](Parameters&... each) {
        void* pointers[] = {&each..., nullptr};
        return cudaLaunchKernel(reinterpret_cast<const void*>(kernel), dim3(unsigned(blocks)), dim3(unsigned(threads)),
                                pointers, 0, stream);
      },
      values);
}

// How many blocks of a kernel the current device can hold at once. Asked of it once.
template <auto kernel>
cudaError_t resident_blocks(int threads, int64_t* blocks) {
  constexpr int kDevices = 64;
  static std::atomic<int64_t> known[kDevices];
  int device = 0, processors = 0, per_processor = 0;
  if (const cudaError_t error = cudaGetDevice(&device)) return error;
  if (device < kDevices && (*blocks = known[device].load(std::memory_order_relaxed)) > 0) return cudaSuccess;
  if (const cudaError_t error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device)) {
    return error;
  }
  const void* const code = reinterpret_cast<const void*>(kernel);
  if (const cudaError_t error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_processor, code, threads, 0)) {
    return error;
  }
  *blocks = int64_t(processors) * (per_processor > 0 ? per_processor : 1);
  if (device < kDevices) known[device].store(*blocks, std::memory_order_relaxed);
  return cudaSuccess;
}

}  // namespace ft
