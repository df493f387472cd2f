// The device and stream that the operators of this library run on.
#pragma once
#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>

namespace ft {

// While it lives a device, or that of a tensor, is the current one, and is again what it was before afterwards.
class OnDevice {
 public:
  explicit OnDevice(int32_t index);
  explicit OnDevice(const torch::stable::Tensor& x) : OnDevice(x.get_device_index()) {}
  cudaStream_t stream() const { return stream_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
};

// Memory of a device for one or more calls on its current stream: torch keeps it until what is under way there is done.
torch::stable::Tensor empty_bytes(int64_t bytes, int32_t device);

// Throws "fusedtrain.op: ..." unless a call of CUDA went well.
void check(cudaError_t error, const char* op);

}  // namespace ft
