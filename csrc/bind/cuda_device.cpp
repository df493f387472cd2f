// The operators of this library work on tensors of CUDA devices.
#include "bind/cuda_device.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include "args/args.h"

namespace ft {

bool is_here(const Tensor& x) { return x.is_cuda(); }
const char* const kHere = "on a CUDA device";

AOTITorchError allocate(const std::vector<int64_t>& shape, const std::vector<int64_t>& strides, int32_t dtype,
                        int32_t device, AtenTensorHandle* to) {
  return aoti_torch_empty_strided(int64_t(shape.size()), shape.data(), strides.data(), dtype,
                                  aoti_torch_device_type_cuda(), device, to);
}

OnDevice::OnDevice(int32_t index) : guard_(index) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index, &stream));
  stream_ = static_cast<cudaStream_t>(stream);
}

void check(cudaError_t error, const char* op) {
  require(error == cudaSuccess, op, "CUDA says ", cudaGetErrorName(error), ": ", cudaGetErrorString(error));
}

}  // namespace ft
