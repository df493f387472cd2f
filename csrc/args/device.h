// Which device the operators of a library work on. The two libraries, of the CPU and of CUDA, share all checks of
// arguments; what differs between them is declared here and defined once in each.
#pragma once
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <exception>
#include <vector>

namespace ft {

using torch::stable::Tensor;

bool is_here(const Tensor& x);
extern const char* const kHere;  // "on the CPU", for messages

// A contiguous, uninitialised tensor on the device of `like`.
Tensor empty(const std::vector<int64_t>& shape, int32_t dtype, const Tensor& like);

// Called where the exception of an allocation of so many bytes is caught: throws it again, or one that says more.
[[noreturn]] void failed_to_allocate(int64_t bytes, int32_t device);

// What f() returns, which allocates a tensor like this one.
template <class F>
Tensor allocating(const Tensor& like, F&& f) {
  try {
    return f();
  } catch (const std::exception&) {
    failed_to_allocate(like.numel() * int64_t(like.element_size()), like.get_device_index());
  }
}

}  // namespace ft
