// The CUDA library's operators for CPU tensors, in a namespace of their own: what csrc/bind/cuda.cpp and
// csrc/bind/cuda_device.cpp are for a device.
#include <cstring>

#include "args/args.h"
#include "bind/cuda_device.h"
#include "bind/operators.h"

namespace ft {

bool is_here(const Tensor& x) { return x.is_cpu(); }
const char* const kHere = "on the CPU";

namespace {

Tensor empty_here(const std::vector<int64_t>& shape, int32_t dtype) {
  std::vector<int64_t> strides(shape.size());
  int64_t stride = 1;
  for (size_t d = shape.size(); d-- > 0;) {
    strides[d] = stride;
    stride *= shape[d] > 1 ? shape[d] : 1;
  }
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(int64_t(shape.size()), shape.data(), strides.data(), dtype,
                                                  aoti_torch_device_type_cpu(), 0, &handle));
  return Tensor(handle);
}

}  // namespace

Tensor empty(const std::vector<int64_t>& shape, int32_t dtype, const Tensor&) { return empty_here(shape, dtype); }

Tensor empty_bytes(int64_t bytes, int32_t) {
  Tensor memory = empty_here({bytes}, aoti_torch_dtype_uint8());
  std::memset(memory.mutable_data_ptr(), 0xAB, size_t(bytes));  // so that what nobody has written shows
  return memory;
}

void check(cudaError_t error, const char* op) {
  require(error == cudaSuccess, op, "CUDA says ", cudaGetErrorName(error), ": ", cudaGetErrorString(error));
}

}  // namespace ft

STABLE_TORCH_LIBRARY_IMPL(fusedtrain_emulated, CPU, m) { ft::implement_operators(m); }
