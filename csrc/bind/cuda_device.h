// The device and stream that the operators of this library run on.
#pragma once
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <vector>

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

// A tensor of these strides on a device; an error if torch has none to give.
AOTITorchError allocate(const std::vector<int64_t>& shape, const std::vector<int64_t>& strides, int32_t dtype,
                        int32_t device, AtenTensorHandle* to);

// Memory of a device for one or more calls on its current stream: torch keeps it until what is under way there is done.
torch::stable::Tensor empty_bytes(int64_t bytes, int32_t device);

// Throws "fusedtrain.op: ..." unless a call of CUDA went well.
void check(cudaError_t error, const char* op);

}  // namespace ft
