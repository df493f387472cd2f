// y = dropout(act(x + bias)) + residual and its gradient, for CPU tensors.
#include "cpu/blocks.h"
#include "cpu/ops.h"

namespace ft {
namespace {

using torch::headeronly::ScalarType;

constexpr const char* kForward = "act_dropout";
constexpr const char* kInplace = "act_dropout_";
constexpr const char* kBackward = "act_dropout_grad";

template <class... Rules>
bool saves_output(int rule, TypeList<Rules...>) {
  const bool table[] = {Rules::kSaves == Saves::kOutput...};
  return table[rule];
}

void check_forward(const char* op, const Tensor& x, const OptionalTensor& bias, const OptionalTensor& residual) {
  check_tensor(op, "x", x);
  check_bias(op, bias, width_of(x));
  if (residual) {
    check_tensor(op, "residual", *residual);
    check_same_shape(op, "residual", *residual, "x", x);
  }
}

template <class C>
void forward(const char* op, const Tensor& x, const OptionalTensor& bias, const OptionalTensor& residual,
             const Dropout& dropout, int rule, const Tensor& y) {
  const ActKernels<C>& kernels = act_kernels<C>();
  const Input<C> xs(op, "x", x);
  const Input<C> residuals = residual ? Input<C>(op, "residual", *residual) : Input<C>();
  const TiledBias<C> tiled(op, bias, 0, width_of(x));
  const Output<C> ys(y, check_tensor(op, "x", y));
  const Drop<C> drop = dropout.as<C>();
  // So that the backward can tell a kept zero from a dropped one by the output alone.
  const bool mark = dropout.drops() && !residual && saves_output(rule, Activations{});
  for_blocks(x.numel(), [&](int64_t start, int64_t n) {
    Buffer<C> x_buffer, residual_buffer, y_buffer;
    LaneBuffer lane_buffer;
    const int64_t steps = round_up_to_step(n);
    const uint16_t* lanes = lane_buffer.fill(dropout, start, n);
    const C* r = residuals ? residuals.block(start, n, residual_buffer) : nullptr;
    const C* x_block = xs.block(start, n, x_buffer);
    kernels.fwd[rule](x_block, tiled.block(start), y_buffer.values, steps);
    C* target = ys.block(start, n, x_buffer);
    kernels.dropout(y_buffer.values, lanes, drop, r, mark, target, steps);
    ys.put(start, n, target, lanes, drop, mark);
  });
}

void forward(const char* op, const Tensor& x, const OptionalTensor& bias, const OptionalTensor& residual,
             const Dropout& dropout, int rule, const Tensor& y) {
  x.scalar_type() == ScalarType::Double ? forward<double>(op, x, bias, residual, dropout, rule, y)
                                        : forward<float>(op, x, bias, residual, dropout, rule, y);
}

template <class C>
void backward(const Tensor& dy, const OptionalTensor& saved, const OptionalTensor& bias, const Dropout& dropout,
              int rule, bool from_output, const Tensor& dx, const Tensor* dbias) {
  const ActKernels<C>& kernels = act_kernels<C>();
  const Input<C> dys(kBackward, "dy", dy);
  const Input<C> inputs = saved ? Input<C>(kBackward, "saved", *saved) : Input<C>();
  const TiledBias<C> tiled(kBackward, bias, 0, width_of(dy));
  const Output<C> dxs(dx, check_tensor(kBackward, "dy", dx));
  const Drop<C> drop = dropout.as<C>();
  const C scale = dropout.drops() ? drop.scale : C(1), inverse_scale = scale != C(0) ? C(1 / dropout.scale()) : C(1);
  const bool mask_from_output = from_output && dropout.drops();

  // Computes dx of a run and returns it before rounding.
  const auto run = [&](int64_t start, int64_t n, Buffer<C>& dx_buffer) -> const C* {
    Buffer<C> dy_buffer, saved_buffer, slope;
    LaneBuffer lane_buffer;
    const int64_t steps = round_up_to_step(n);
    const C* dy_block = dys.block(start, n, dy_buffer);
    C* target = dxs.block(start, n, dx_buffer);
    // An input that is absent is not looked at by the rule: any values will do.
    const C* s = inputs ? inputs.block(start, n, saved_buffer) : dy_block;
    if (from_output) {
      kernels.grad_from_output[rule](s, inverse_scale, slope.values, steps);
    } else {
      kernels.grad[rule](s, tiled.block(start), slope.values, steps);
    }
    if (mask_from_output) {
      kernels.gradient_from_output(dy_block, slope.values, s, scale, target, steps);
    } else {
      const uint16_t* lanes = from_output ? nullptr : lane_buffer.fill(dropout, start, n);
      kernels.gradient(dy_block, slope.values, lanes, drop, target, steps);
    }
    dxs.put(start, n, target);
    return target;
  };

  if (dbias == nullptr) {
    for_blocks(dy.numel(), [&](int64_t start, int64_t n) {
      Buffer<C> dx_buffer;
      run(start, n, dx_buffer);
    });
    return;
  }
  ColumnSums<C> sums(dy.numel(), width_of(dy));
  sums.for_runs([&](int64_t start, int64_t n, C* sum) {
    Buffer<C> dx_buffer;
    kernels.accumulate(run(start, n, dx_buffer), sum, n);
  });
  sums.reduce(dbias->mutable_data_ptr<C>());
}

}  // namespace

Tensor act_dropout(const Tensor& x, const OptionalTensor& bias, const OptionalTensor& residual,
                   const OptionalTensor& rng_state, int64_t threshold, const std::string& activation) {
  check_forward(kForward, x, bias, residual);
  const int rule = check_activation(kForward, activation);
  const Dropout dropout = check_dropout(kForward, rng_state, threshold);
  return in_layout_of(x, [&](const Tensor& y) { forward(kForward, x, bias, residual, dropout, rule, y); });
}

void act_dropout_(const Tensor& x, const OptionalTensor& bias, const OptionalTensor& residual,
                  const OptionalTensor& rng_state, int64_t threshold, const std::string& activation) {
  check_forward(kInplace, x, bias, residual);
  for (int64_t d = 0; d < x.dim(); ++d) {
    require(x.stride(d) != 0 || x.size(d) <= 1, kInplace, "x has elements that share memory (dimension ", d,
            " of shape ", shape_of(x), " was expanded); clone it first");
  }
  const int rule = check_activation(kInplace, activation);
  const Dropout dropout = check_dropout(kInplace, rng_state, threshold);
  const bool apart = !residual || !may_overlap(x, *residual);
  if (x.is_contiguous() && apart) {
    forward(kInplace, x, bias, residual, dropout, rule, x);
    return;
  }
  const Tensor y = empty(shape_vector(x), dtype_of(x));
  forward(kInplace, x, bias, residual, dropout, rule, y);
  Tensor target = x;
  torch::stable::copy_(target, y);
}

std::tuple<Tensor, Tensor> act_dropout_grad(const Tensor& dy, const OptionalTensor& saved, const OptionalTensor& bias,
                                            const OptionalTensor& rng_state, int64_t threshold,
                                            const std::string& activation, bool from_output, bool needs_bias_grad) {
  check_tensor(kBackward, "dy", dy);
  const int rule = check_activation(kBackward, activation);
  const bool identity = rule == check_activation(kBackward, Identity::kName);
  if (saved) {
    check_tensor(kBackward, "saved", *saved);
    check_same_shape(kBackward, "saved", *saved, "dy", dy);
    require(saved->scalar_type() == dy.scalar_type(), kBackward, "saved has dtype ",
            torch::headeronly::toString(saved->scalar_type()), "; it must have that of dy, ",
            torch::headeronly::toString(dy.scalar_type()));
  } else {
    require(identity && !from_output, kBackward, "saved is None; ", activation, " needs its ",
            from_output ? "output" : "input");
  }
  require(!from_output || act_kernels<float>().grad_from_output[rule] != nullptr, kBackward,
          "from_output is True, but ", activation, " has no gradient from its output; save its input");
  check_bias(kBackward, bias, width_of(dy));
  const Dropout dropout = check_dropout(kBackward, rng_state, threshold, !from_output);

  const bool is_double = dy.scalar_type() == ScalarType::Double;
  const Tensor dbias = empty_sums(needs_bias_grad ? width_of(dy) : 0, is_double);
  const Tensor* sums = needs_bias_grad ? &dbias : nullptr;
  Tensor dx = in_layout_of(saved ? *saved : dy, [&](const Tensor& out) {
    is_double ? backward<double>(dy, saved, bias, dropout, rule, from_output, out, sums)
              : backward<float>(dy, saved, bias, dropout, rule, from_output, out, sums);
  });
  return {dx, dbias};
}

}  // namespace ft
