// The device and stream that the operators of this library run on.
#pragma once
#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>

namespace ft {

// While it lives the device of `x` is the current one, and is again what it was before afterwards.
class OnDevice {
 public:
  explicit OnDevice(const torch::stable::Tensor& x);
  cudaStream_t stream() const { return stream_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
};

// Throws "fusedtrain.op: ..." unless a call of CUDA went well.
void check(cudaError_t error, const char* op);

}  // namespace ft
