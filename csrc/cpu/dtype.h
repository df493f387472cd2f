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

}  // namespace ft
