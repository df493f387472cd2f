// What is seen of a tensor, and how a Python tensor is looked at without DLPack.
#pragma once
#include <cstddef>
#include <cstdint>

namespace ft {

// A tensor as it is at one moment. Shape and strides are torch's own; the numbers of types and devices are of whoever
// looked, and compared with those of no one else.
struct Sight {
  void* data;
  const int64_t *shape, *strides;
  int64_t dims;
  int32_t dtype, device_type, device_index;
};

// Torch's C functions look in two thirds of the time of DLPack's, at the at::Tensor that lies in a Python tensor.
struct TensorLook {
  // 0 if the at::Tensor cannot be described. Does not throw. Where DLPack refuses, it may not: of a tensor that is no
  // strided memory it sees another type, device or address than of one that is.
  int (*look)(const void* tensor, Sight* to) = nullptr;  // null where no way but DLPack is known
  size_t offset = 0;                                     // of the at::Tensor, in bytes: see plan/tensor_offset.h
};

}  // namespace ft
