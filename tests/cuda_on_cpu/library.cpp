// The CUDA library's operators for CPU tensors, in a namespace of their own: what csrc/bind/cuda.cpp and
// csrc/bind/cuda_device.cpp are for a device.
#include <cstring>

#include "args/args.h"
#include "bind/cuda_device.h"
#include "bind/operators.h"

namespace ft {

bool is_here(const Tensor& x) { return x.is_cpu(); }
const char* const kHere = "on the CPU";

AOTITorchError allocate(const std::vector<int64_t>& shape, const std::vector<int64_t>& strides, int32_t dtype, int32_t,
                        AtenTensorHandle* to) {
  if (emu::allocation_fails()) {
    const emu::Reason reason = emu::reason_of_failure();
    if (reason == emu::kNotTold) return AOTI_TORCH_FAILURE;
    // Torch fails by itself: no machine has so much, and no tensor is of less than nothing.
    const int64_t size = reason == emu::kNoMemory ? int64_t{1} << 60 : -1, step = 1;
    return aoti_torch_empty_strided(1, &size, &step, dtype, aoti_torch_device_type_cpu(), 0, to);
  }
  const AOTITorchError error = aoti_torch_empty_strided(int64_t(shape.size()), shape.data(), strides.data(), dtype,
                                                        aoti_torch_device_type_cpu(), 0, to);
  if (error == AOTI_TORCH_SUCCESS && dtype == aoti_torch_dtype_uint8()) {
    void* memory = nullptr;
    aoti_torch_get_data_ptr(*to, &memory);
    std::memset(memory, 0xAB, size_t(shape[0]));  // a workspace: so that what nobody has written shows
  }
  return error;
}

void check(cudaError_t error, const char* op) {
  require(error == cudaSuccess, op, "CUDA says ", cudaGetErrorName(error), ": ", cudaGetErrorString(error));
}

}  // namespace ft

STABLE_TORCH_LIBRARY_IMPL(fusedtrain_emulated, CPU, m) { ft::implement_operators(m); }
