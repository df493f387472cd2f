// The operators of this library work on tensors of CUDA devices.
#include "bind/cuda_device.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include "args/args.h"

namespace ft {

bool is_here(const Tensor& x) { return x.is_cuda(); }
const char* const kHere = "on a CUDA device";

namespace {

Tensor empty_on(int32_t device, const std::vector<int64_t>& shape, int32_t dtype) {
  std::vector<int64_t> strides(shape.size());
  int64_t stride = 1;
  for (size_t d = shape.size(); d-- > 0;) {
    strides[d] = stride;
    stride *= shape[d] > 1 ? shape[d] : 1;
  }
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(int64_t(shape.size()), shape.data(), strides.data(), dtype,
                                                  aoti_torch_device_type_cuda(), device, &handle));
  return Tensor(handle);
}

}  // namespace

Tensor empty(const std::vector<int64_t>& shape, int32_t dtype, const Tensor& like) {
  return empty_on(like.get_device_index(), shape, dtype);
}

Tensor empty_bytes(int64_t bytes, int32_t device) { return empty_on(device, {bytes}, aoti_torch_dtype_uint8()); }

OnDevice::OnDevice(int32_t index) : guard_(index) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index, &stream));
  stream_ = static_cast<cudaStream_t>(stream);
}

void check(cudaError_t error, const char* op) {
  require(error == cudaSuccess, op, "CUDA says ", cudaGetErrorName(error), ": ", cudaGetErrorString(error));
}

}  // namespace ft
