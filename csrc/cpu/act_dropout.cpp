// y = dropout(act(x + bias)) + residual and its gradient, for CPU tensors.
#include "args/ops.h"
#include "cpu/blocks.h"

namespace ft {
namespace {

using torch::headeronly::ScalarType;

constexpr const char* kForward = "act_dropout";
constexpr const char* kInplace = "act_dropout_";
constexpr const char* kBackward = "act_dropout_grad";

template <class C>
void forward(const char* op, const Tensor& x, const OptionalTensor& bias, const OptionalTensor& residual,
             const ActCall& call, const Tensor& y) {
  const ActKernels<C>& kernels = act_kernels<C>();
  const Input<C> xs(op, "x", x);
  const Input<C> residuals = residual ? Input<C>(op, "residual", *residual) : Input<C>();
  const TiledBias<C> tiled(op, bias, 0, width_of(x));
  const Output<C> ys(y, check_tensor(op, "x", y));
  const Dropout dropout(call);
  const Drop<C> drop = dropout.as<C>();
  // So that the backward can tell a kept zero from a dropped one by the output alone.
  const bool mark = dropout.drops() && !residual && saves_output(call.rule);
  for_blocks(x.numel(), [&](int64_t start, int64_t n) {
    Buffer<C> x_buffer, residual_buffer, y_buffer;
    LaneBuffer lane_buffer;
    const int64_t steps = round_up_to_step(n);
    const uint16_t* lanes = lane_buffer.fill(dropout, start, n);
    const C* r = residuals ? residuals.block(start, n, residual_buffer) : nullptr;
    const C* x_block = xs.block(start, n, x_buffer);
    kernels.fwd[call.rule](x_block, tiled.block(start), y_buffer.values, steps);
    C* target = ys.block(start, n, x_buffer);
    kernels.dropout(y_buffer.values, lanes, drop, r, mark, target, steps);
    ys.put(start, n, target, lanes, drop, mark);
  });
}

void forward(const char* op, const Tensor& x, const OptionalTensor& bias, const OptionalTensor& residual,
             const ActCall& call, const Tensor& y) {
  x.scalar_type() == ScalarType::Double ? forward<double>(op, x, bias, residual, call, y)
                                        : forward<float>(op, x, bias, residual, call, y);
}

template <class C>
void backward(const Tensor& dy, const OptionalTensor& saved, const OptionalTensor& bias, const ActCall& call,
              bool from_output, const Tensor& dx, const Tensor* dbias) {
  const ActKernels<C>& kernels = act_kernels<C>();
  const Input<C> dys(kBackward, "dy", dy);
  const Input<C> inputs = saved ? Input<C>(kBackward, "saved", *saved) : Input<C>();
  const TiledBias<C> tiled(kBackward, bias, 0, width_of(dy));
  const Output<C> dxs(dx, check_tensor(kBackward, "dy", dx));
  const Dropout dropout(call);
  const Drop<C> drop = dropout.as<C>();
  const C scale = dropout.drops() ? drop.scale : C(1), inverse_scale = scale != C(0) ? C(1 / dropout.scale) : C(1);
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
      kernels.grad_from_output[call.rule](s, inverse_scale, slope.values, steps);
    } else {
      kernels.grad[call.rule](s, tiled.block(start), slope.values, steps);
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
  const ActCall call = check_forward(kForward, x, bias, residual, rng_state, threshold, activation);
  return in_layout_of(x, [&](const Tensor& y) { forward(kForward, x, bias, residual, call, y); });
}

void act_dropout_(const Tensor& x, const OptionalTensor& bias, const OptionalTensor& residual,
                  const OptionalTensor& rng_state, int64_t threshold, const std::string& activation) {
  const ActCall call = check_forward(kInplace, x, bias, residual, rng_state, threshold, activation, true);
  const bool apart = !residual || !may_overlap(x, *residual);
  if (x.is_contiguous() && apart) {
    forward(kInplace, x, bias, residual, call, x);
    return;
  }
  const Tensor y = empty(shape_vector(x), dtype_of(x), x);
  forward(kInplace, x, bias, residual, call, y);
  Tensor target = x;
  torch::stable::copy_(target, y);
}

std::tuple<Tensor, Tensor> act_dropout_grad(const Tensor& dy, const OptionalTensor& saved, const OptionalTensor& bias,
                                            const OptionalTensor& rng_state, int64_t threshold,
                                            const std::string& activation, bool from_output, bool needs_bias_grad) {
  const ActCall call = check_backward(kBackward, dy, saved, bias, rng_state, threshold, activation, from_output);
  const Tensor dbias = empty_sums(needs_bias_grad ? width_of(dy) : 0, dy);
  const Tensor* sums = needs_bias_grad ? &dbias : nullptr;
  Tensor dx = in_layout_of(saved ? *saved : dy, [&](const Tensor& out) {
    dy.scalar_type() == ScalarType::Double ? backward<double>(dy, saved, bias, call, from_output, out, sums)
                                           : backward<float>(dy, saved, bias, call, from_output, out, sums);
  });
  return {dx, dbias};
}

}  // namespace ft
