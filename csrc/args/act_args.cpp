#include "args/act_args.h"

namespace ft {
namespace {

using torch::headeronly::ScalarType;

template <class... Rules>
int position(const std::string& name, TypeList<Rules...>) {
  int index = 0, found = -1;
  ((found = name == Rules::kName ? index : found, ++index), ...);
  return found;
}

template <class... Rules>
Saves saves(int rule, TypeList<Rules...>) {
  const Saves table[] = {Rules::kSaves...};
  return table[rule];
}

void check_bias(const char* op, const OptionalTensor& bias, const Tensor& x) {
  if (!bias) return;
  check_tensor(op, "bias", *bias);
  check_same_device(op, "bias", *bias, "x", x);
  require(bias->dim() == 1 && bias->size(0) == width_of(x), op, "bias has shape ", shape_of(*bias), "; it must be (",
          width_of(x), ",), the last dimension of x");
}

ActCall check_common(const char* op, const Tensor& x, const OptionalTensor& rng_state, int64_t threshold,
                     const std::string& activation, bool needs_lanes) {
  ActCall call;
  call.rule = position(activation, Activations{});
  require(call.rule >= 0, op, "unknown activation '", activation, "'; choose one of ", names(Activations{}));
  require(threshold >= 0 && threshold <= 65536, op, "threshold is ", threshold,
          "; it must be round(65536 p), in [0, 65536]");
  call.threshold = uint32_t(threshold);
  if (rng_state) {
    require(is_here(*rng_state), op, "rng_state is not ", kHere, "; draw it on the device of x");
    check_same_device(op, "rng_state", *rng_state, "x", x);
    require(rng_state->scalar_type() == ScalarType::Long && rng_state->dim() == 1 && rng_state->size(0) == 2, op,
            "rng_state has shape ", shape_of(*rng_state), " and dtype ", dtype_name(*rng_state),
            "; it must be int64 (2,) = (seed, offset)");
    call.rng_state = *rng_state;
  } else {
    require(!needs_lanes || threshold == 0, op, "rng_state is None but threshold is ", threshold,
            "; pass an int64 (2,) tensor (seed, offset), or threshold 0");
  }
  return call;
}

void check_gated(const char* op, const Tensor& x, const OptionalTensor& bias) {
  check_tensor(op, "x", x);
  require(x.dim() > 0 && width_of(x) % 2 == 0, op, "x has shape ", shape_of(x),
          "; its last dimension must be even: it holds gate and up");
  check_bias(op, bias, x);
}

}  // namespace

ActCall check_forward(const char* op, const Tensor& x, const OptionalTensor& bias, const OptionalTensor& residual,
                      const OptionalTensor& rng_state, int64_t threshold, const std::string& activation, bool inplace) {
  check_tensor(op, "x", x);
  check_bias(op, bias, x);
  if (residual) {
    check_tensor(op, "residual", *residual);
    check_same_device(op, "residual", *residual, "x", x);
    check_same_shape(op, "residual", *residual, "x", x);
  }
  for (int64_t d = 0; inplace && d < x.dim(); ++d) {
    require(x.stride(d) != 0 || x.size(d) <= 1, op, "x has elements that share memory (dimension ", d, " of shape ",
            shape_of(x), " was expanded); clone it first");
  }
  return check_common(op, x, rng_state, threshold, activation, true);
}

ActCall check_backward(const char* op, const Tensor& dy, const OptionalTensor& saved, const OptionalTensor& bias,
                       const OptionalTensor& rng_state, int64_t threshold, const std::string& activation,
                       bool from_output) {
  check_tensor(op, "dy", dy);
  const ActCall call = check_common(op, dy, rng_state, threshold, activation, !from_output);
  if (saved) {
    check_tensor(op, "saved", *saved);
    check_same_device(op, "saved", *saved, "dy", dy);
    check_same_shape(op, "saved", *saved, "dy", dy);
    require(saved->scalar_type() == dy.scalar_type(), op, "saved has dtype ", dtype_name(*saved),
            "; it must have that of dy, ", dtype_name(dy));
  } else {
    require(saves(call.rule, Activations{}) == Saves::kNothing && !from_output, op, "saved is None; ", activation,
            " needs its ", from_output ? "output" : "input");
  }
  require(!from_output || saves(call.rule, Activations{}) != Saves::kInput, op, "from_output is True, but ", activation,
          " has no gradient from its output; save its input");
  check_bias(op, bias, dy);
  return call;
}

ActCall check_gated_forward(const char* op, const Tensor& x, const OptionalTensor& bias,
                            const OptionalTensor& rng_state, int64_t threshold, const std::string& activation) {
  check_gated(op, x, bias);
  return check_common(op, x, rng_state, threshold, activation, true);
}

ActCall check_gated_backward(const char* op, const Tensor& dy, const Tensor& x, const OptionalTensor& bias,
                             const OptionalTensor& rng_state, int64_t threshold, const std::string& activation) {
  check_gated(op, x, bias);
  check_tensor(op, "dy", dy);
  check_same_device(op, "dy", dy, "x", x);
  bool fits = dy.dim() == x.dim() && 2 * width_of(dy) == width_of(x);
  for (int64_t d = 0; fits && d + 1 < x.dim(); ++d) fits = dy.size(d) == x.size(d);
  require(fits, op, "dy has shape ", shape_of(dy), "; it must be that of x, ", shape_of(x), ", with half the columns");
  require(dy.scalar_type() == x.scalar_type(), op, "dy has dtype ", dtype_name(dy), "; it must have that of x, ",
          dtype_name(x));
  return check_common(op, x, rng_state, threshold, activation, true);
}

bool saves_output(int rule) { return saves(rule, Activations{}) == Saves::kOutput; }

std::vector<int64_t> gated_shape(const Tensor& x) {
  std::vector<int64_t> shape = shape_vector(x);
  shape.back() /= 2;
  return shape;
}

Tensor empty_sums(int64_t width, const Tensor& like) {
  const bool is_double = like.scalar_type() == ScalarType::Double;
  return empty({width}, is_double ? aoti_torch_dtype_float64() : aoti_torch_dtype_float32(), like);
}

}  // namespace ft
