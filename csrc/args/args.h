// The arguments of operators, checked: every one before anything is written.
#pragma once
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "args/device.h"
#include "plan/dtype.h"

namespace ft {

using OptionalTensor = std::optional<Tensor>;
using TensorList = std::vector<Tensor>;

// Throws "fusedtrain.op: ..." unless `ok`.
template <class... Parts>
void require(bool ok, const char* op, const Parts&... parts) {
  if (ok) return;
  std::ostringstream message;
  message << "fusedtrain." << op << ": ";
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

std::string shape_of(const Tensor& x);  // "(3, 4)"
std::string dtype_name(const Tensor& x);

inline std::vector<int64_t> shape_vector(const Tensor& x) { return {x.sizes().begin(), x.sizes().end()}; }
inline int32_t dtype_of(const Tensor& x) {
  int32_t dtype;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(x.get(), &dtype));
  return dtype;
}

// The number of columns: the last dimension, 1 of a 0-dim tensor.
inline int64_t width_of(const Tensor& x) { return x.dim() == 0 ? 1 : x.size(x.dim() - 1); }

// The type of the elements of an argument, if it is a floating one on the device of this library.
std::optional<DType> float_type_here(const Tensor& x);
// The same; throws if it is not.
DType check_tensor(const char* op, const char* name, const Tensor& x);
// Throws unless x is on the very device of `like`: there may be several GPUs.
void check_same_device(const char* op, const char* name, const Tensor& x, const char* like_name, const Tensor& like);
void check_same_shape(const char* op, const char* name, const Tensor& x, const char* like_name, const Tensor& like);

// False if its storage was freed, as by resize_(0): then what torch calls its memory is null plus its offset.
bool has_memory(const Tensor& x);
// Throws then.
void check_memory(const char* op, const char* name, const Tensor& x);

// Whether the memory of two tensors may overlap: conservatively, by their ranges.
bool may_overlap(const Tensor& a, const Tensor& b);

// The tensor itself or a contiguous copy.
inline Tensor as_contiguous(const Tensor& x) {
  return x.is_contiguous() ? x : allocating(x, [&] { return torch::stable::contiguous(x); });
}

// A fresh tensor with the shape, dtype, device and, as torch.empty_like, the strides of `x`, which f writes as
// contiguous.
template <class F>
Tensor in_layout_of(const Tensor& x, F&& f) {
  const Tensor contiguous = empty(shape_vector(x), dtype_of(x), x);
  f(contiguous);
  if (x.is_contiguous()) return contiguous;
  Tensor y = allocating(x, [&] { return torch::stable::empty_like(x); });
  return y.is_contiguous() ? contiguous : torch::stable::copy_(y, contiguous);
}

}  // namespace ft
