// Types of elements of tensors.
#pragma once
#include <cstdint>

namespace ft {

enum class DType : int32_t { kFloat, kDouble, kHalf, kBFloat16 };
constexpr int kDTypes = 4;

constexpr int64_t size_of(DType dtype) { return dtype == DType::kDouble ? 8 : dtype == DType::kFloat ? 4 : 2; }

}  // namespace ft
