// Types of elements of tensors.
#pragma once
#include <cstdint>

namespace ft {

enum class DType : int32_t { kFloat, kDouble, kHalf, kBFloat16 };
constexpr int kDTypes = 4;

}  // namespace ft
