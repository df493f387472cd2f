// In the place of csrc/bind/cuda_device.h: the device is the CPU.
#pragma once
#include <cuda_runtime.h>
#include <torch/csrc/stable/tensor.h>

namespace ft {

class OnDevice {
 public:
  explicit OnDevice(int32_t) {}
  explicit OnDevice(const torch::stable::Tensor&) {}
  cudaStream_t stream() const { return reinterpret_cast<cudaStream_t>(emu::current_stream()); }
};

torch::stable::Tensor empty_bytes(int64_t bytes, int32_t device);

void check(cudaError_t error, const char* op);

}  // namespace ft
