// Element types of tensors as the kernels see them.
#pragma once
#include <cstdint>

#include "plan/dtype.h"

namespace ft {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

constexpr int64_t size_of(DType dtype) { return dtype == DType::kDouble ? 8 : dtype == DType::kFloat ? 4 : 2; }

}  // namespace ft
