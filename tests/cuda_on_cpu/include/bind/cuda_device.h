// In the place of csrc/bind/cuda_device.h: the device is the CPU.
#pragma once
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/tensor.h>

#include <vector>

namespace ft {

class OnDevice {
 public:
  explicit OnDevice(int32_t) {}
  explicit OnDevice(const torch::stable::Tensor&) {}
  cudaStream_t stream() const { return reinterpret_cast<cudaStream_t>(emu::current_stream()); }
};

AOTITorchError allocate(const std::vector<int64_t>& shape, const std::vector<int64_t>& strides, int32_t dtype,
                        int32_t device, AtenTensorHandle* to);

torch::stable::Tensor empty_bytes(int64_t bytes, int32_t device);

void check(cudaError_t error, const char* op);

}  // namespace ft
