// Which device the operators of a library work on. The two libraries, of the CPU and of CUDA, share all checks of
// arguments; what differs between them is declared here and defined once in each.
#pragma once
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <vector>

namespace ft {

using torch::stable::Tensor;

bool is_here(const Tensor& x);
extern const char* const kHere;  // "on the CPU", for messages

// A contiguous, uninitialised tensor on the device of `like`.
Tensor empty(const std::vector<int64_t>& shape, int32_t dtype, const Tensor& like);

}  // namespace ft
