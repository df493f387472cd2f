// The arguments of the act_dropout operators: checked, every one before anything is written, and made contiguous.
#pragma once
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <sstream>
#include <stdexcept>
#include <string>

#include "cpu/act_kernels.h"
#include "cpu/ops.h"

namespace ft {

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

// The number of columns: the last dimension, 1 of a 0-dim tensor.
inline int64_t width_of(const Tensor& x) { return x.dim() == 0 ? 1 : x.size(x.dim() - 1); }

// The type of the elements of an argument; throws unless it is a floating one on the CPU.
DType check_tensor(const char* op, const char* name, const Tensor& x);
void check_same_shape(const char* op, const char* name, const Tensor& x, const char* like_name, const Tensor& like);
void check_bias(const char* op, const OptionalTensor& bias, int64_t width);

// Position of the rule in Activations; throws, listing them, if there is none of this name.
int check_activation(const char* op, const std::string& activation);

// The dropout of one call. `drops` is false if the threshold is 0: then there are no lanes.
struct Dropout {
  int64_t seed = 0;
  int64_t offset = 0;
  uint32_t threshold = 0;

  bool drops() const { return threshold > 0; }
  double scale() const { return threshold < 65536 ? 65536.0 / (65536.0 - threshold) : 0.0; }
  template <class C>
  Drop<C> as() const {
    return {threshold, C(scale())};
  }
};

// `needs_lanes` is false where the mask is taken from the output: the RNG state may be absent then.
Dropout check_dropout(const char* op, const OptionalTensor& rng_state, int64_t threshold, bool needs_lanes = true);

// Whether the memory of two tensors may overlap: conservatively, by their ranges.
bool may_overlap(const Tensor& a, const Tensor& b);

// A contiguous, uninitialised CPU tensor. Straight to the allocator: by way of the dispatcher it costs microseconds.
Tensor empty(const std::vector<int64_t>& shape, int32_t dtype);

inline std::vector<int64_t> shape_vector(const Tensor& x) { return {x.sizes().begin(), x.sizes().end()}; }
inline int32_t dtype_of(const Tensor& x) {
  int32_t dtype;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(x.get(), &dtype));
  return dtype;
}

// A bias gradient of this width: of doubles or of floats.
inline Tensor empty_sums(int64_t width, bool is_double) {
  return empty({width}, is_double ? aoti_torch_dtype_float64() : aoti_torch_dtype_float32());
}

// A fresh tensor with the shape, dtype and, as torch.empty_like, the strides of `x`, which f writes as contiguous.
template <class F>
Tensor in_layout_of(const Tensor& x, F&& f) {
  const Tensor contiguous = empty(shape_vector(x), dtype_of(x));
  f(contiguous);
  if (x.is_contiguous()) return contiguous;
  Tensor y = torch::stable::empty_like(x);
  return y.is_contiguous() ? contiguous : torch::stable::copy_(y, contiguous);
}

}  // namespace ft
