// In the place of csrc/bind/cuda_device.h: the device is the CPU.
#pragma once
#include <cuda_runtime.h>
#include <torch/csrc/stable/tensor.h>

namespace ft {

class OnDevice {
 public:
  explicit OnDevice(const torch::stable::Tensor&) {}
  cudaStream_t stream() const { return nullptr; }
};

void check(cudaError_t error, const char* op);

}  // namespace ft
