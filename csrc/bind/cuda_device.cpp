// The operators of this library work on tensors of CUDA devices.
#include "bind/cuda_device.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include "args/args.h"

namespace ft {

bool is_here(const Tensor& x) { return x.is_cuda(); }
const char* const kHere = "on a CUDA device";

Tensor empty(const std::vector<int64_t>& shape, int32_t dtype, const Tensor& like) {
  std::vector<int64_t> strides(shape.size());
  int64_t stride = 1;
  for (size_t d = shape.size(); d-- > 0;) {
    strides[d] = stride;
    stride *= shape[d] > 1 ? shape[d] : 1;
  }
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(int64_t(shape.size()), shape.data(), strides.data(), dtype,
                                                  aoti_torch_device_type_cuda(), like.get_device_index(), &handle));
  return Tensor(handle);
}

OnDevice::OnDevice(const Tensor& x) : guard_(x.get_device_index()) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream));
  stream_ = static_cast<cudaStream_t>(stream);
}

void check(cudaError_t error, const char* op) {
  require(error == cudaSuccess, op, "CUDA says ", cudaGetErrorName(error), ": ", cudaGetErrorString(error));
}

}  // namespace ft
