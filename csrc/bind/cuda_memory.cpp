// Memory of CUDA devices: torch's, and what is said when it has none.
#include <cuda_runtime.h>
#include <dlfcn.h>

#include "args/args.h"
#include "bind/cuda_device.h"

namespace ft {
namespace {

// What the last exception was that torch did not let through its C functions. Torch 2.11 does not keep it.
std::string what_torch_says() {
  using Ask = const char* (*)();
  static const Ask ask = reinterpret_cast<Ask>(dlsym(RTLD_DEFAULT, "torch_exception_get_what_without_backtrace"));
  const char* const text = ask != nullptr ? ask() : nullptr;
  return text != nullptr ? text : "";
}

// As torch's allocators say it: that of CUDA, and that of the CPU, where the device is emulated.
bool says_out_of_memory(const std::string& text) {
  return text.find("out of memory") != std::string::npos || text.find("can't allocate memory") != std::string::npos;
}

// In the words of torch's own error, which programs look for that then try a smaller batch, and from which Python makes
// an error of that class.
[[noreturn]] void out_of_memory(const std::string& wanted, const std::string& more) {
  throw std::runtime_error("CUDA out of memory. Tried to allocate " + wanted + " for fusedtrain. " + more);
}

// Where torch does not say why, memory is the likely reason, unless CUDA knows of a better one: an earlier kernel has
// broken the device, or the stream is being captured, when much may be refused that is allowed otherwise.
[[noreturn]] void failed_without_reason(const std::string& wanted, int32_t device) {
  const OnDevice here(device);
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  check(cudaStreamIsCapturing(here.stream(), &status), "empty");
  if (status != cudaStreamCaptureStatusNone) {
    throw std::runtime_error("fusedtrain: no tensor of " + wanted +
                             " while the stream is being captured; this torch does not say why");
  }
  size_t free = 0, total = 0;
  check(cudaMemGetInfo(&free, &total), "empty");
  out_of_memory(wanted, "This is likely but not known: this torch does not say why it refused; " +
                            std::to_string(free) + " of " + std::to_string(total) + " bytes are free");
}

Tensor empty_on(int32_t device, const std::vector<int64_t>& shape, int32_t dtype) {
  std::vector<int64_t> strides(shape.size());
  int64_t stride = 1;
  for (size_t d = shape.size(); d-- > 0;) {
    strides[d] = stride;
    stride *= shape[d] > 1 ? shape[d] : 1;
  }
  AtenTensorHandle handle = nullptr;
  if (allocate(shape, strides, dtype, device, &handle) != AOTI_TORCH_SUCCESS) {
    failed_to_allocate(stride * int64_t(aoti_torch_dtype_element_size(dtype)), device);
  }
  return Tensor(handle);
}

}  // namespace

Tensor empty(const std::vector<int64_t>& shape, int32_t dtype, const Tensor& like) {
  return empty_on(like.get_device_index(), shape, dtype);
}

Tensor empty_bytes(int64_t bytes, int32_t device) { return empty_on(device, {bytes}, aoti_torch_dtype_uint8()); }

void failed_to_allocate(int64_t bytes, int32_t device) {
  const std::string text = what_torch_says();
  const std::string wanted = std::to_string(bytes) + " bytes on device " + std::to_string(device);
  if (text.empty()) failed_without_reason(wanted, device);
  if (says_out_of_memory(text)) out_of_memory(wanted, text);
  throw std::runtime_error("fusedtrain: no tensor of " + wanted + ": " + text);
}

}  // namespace ft
