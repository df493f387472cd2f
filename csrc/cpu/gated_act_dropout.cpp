// y = dropout(act(gate) * up), [gate, up] = x + bias, and its gradient, for CPU tensors.
#include "args/ops.h"
#include "cpu/blocks.h"

namespace ft {
namespace {

using torch::headeronly::ScalarType;

constexpr const char* kForward = "gated_act_dropout";
constexpr const char* kBackward = "gated_act_dropout_grad";

// One half of the columns of x (*, 2 D), seen as a tensor (*, D): the runs of a block are the pieces of its rows.
class HalfRows {
 public:
  HalfRows(int64_t first, int64_t width) : first_(first), width_(width) {}

  // f(start in x, offset in the block, length) for each piece of [start, start + n).
  template <class F>
  void for_pieces(int64_t start, int64_t n, F&& f) const {
    for (int64_t done = 0; done < n;) {
      const int64_t row = (start + done) / width_, column = (start + done) % width_;
      const int64_t length = std::min(width_ - column, n - done);
      f(2 * width_ * row + first_ + column, done, length);
      done += length;
    }
  }

  template <class C>
  const C* load(const Input<C>& x, int64_t start, int64_t n, Buffer<C>& buffer) const {
    if (start % width_ + n <= width_) {
      return x.block(2 * width_ * (start / width_) + first_ + start % width_, n, buffer);
    }
    for_pieces(start, n, [&](int64_t from, int64_t at, int64_t length) { x.copy(from, length, buffer.values + at); });
    std::fill(buffer.values + n, buffer.values + round_up_to_step(n), C(0));
    return buffer.values;
  }

  template <class C>
  void store(const Output<C>& x, int64_t start, int64_t n, const C* values) const {
    for_pieces(start, n, [&](int64_t to, int64_t at, int64_t length) { x.put(to, length, values + at); });
  }

 private:
  int64_t first_, width_;
};

// What forward and backward have in common: gate and up with their biases.
template <class C>
struct GateAndUp {
  GateAndUp(const char* op, const Tensor& x, const OptionalTensor& bias)
      : width(width_of(x) / 2),
        gate(0, width),
        up(width, width),
        xs(op, "x", x),
        gate_bias(op, bias, 0, width),
        up_bias(op, bias, width, width) {}

  // up + its bias
  const C* load_up(int64_t start, int64_t n, Buffer<C>& buffer, Buffer<C>& sum) const {
    const C* u = up.load(xs, start, n, buffer);
    const C* b = up_bias.block(start);
    if (b == nullptr) return u;
    act_kernels<C>().add(u, b, sum.values, round_up_to_step(n));
    return sum.values;
  }

  int64_t width;
  HalfRows gate, up;
  Input<C> xs;
  TiledBias<C> gate_bias, up_bias;
};

template <class C>
void forward(const Tensor& x, const OptionalTensor& bias, const ActCall& call, const Tensor& y) {
  if (y.numel() == 0) return;
  const ActKernels<C>& kernels = act_kernels<C>();
  const GateAndUp<C> in(kForward, x, bias);
  const Output<C> ys(y, check_tensor(kForward, "x", y));
  const Dropout dropout(call);
  const Drop<C> drop = dropout.as<C>();
  for_blocks(y.numel(), [&](int64_t start, int64_t n) {
    Buffer<C> gate_buffer, up_buffer, sum, a, y_buffer;
    LaneBuffer lane_buffer;
    const int64_t steps = round_up_to_step(n);
    const uint16_t* lanes = lane_buffer.fill(dropout, start, n);
    const C* gate = in.gate.load(in.xs, start, n, gate_buffer);
    const C* up = in.load_up(start, n, up_buffer, sum);
    kernels.fwd[call.rule](gate, in.gate_bias.block(start), a.values, steps);
    kernels.multiply(up, a.values, steps);
    C* target = ys.block(start, n, y_buffer);
    kernels.dropout(a.values, lanes, drop, nullptr, false, target, steps);
    ys.put(start, n, target);
  });
}

template <class C>
void backward(const Tensor& dy, const Tensor& x, const OptionalTensor& bias, const ActCall& call, const Tensor& dx,
              const Tensor* dbias) {
  const ActKernels<C>& kernels = act_kernels<C>();
  const GateAndUp<C> in(kBackward, x, bias);
  const Input<C> dys(kBackward, "dy", dy);
  const Output<C> dxs(dx, check_tensor(kBackward, "x", dx));
  const Dropout dropout(call);
  const Drop<C> drop = dropout.as<C>();

  // d_gate = kept ? dy (up act'(gate)) scale : 0 and d_up = kept ? dy act(gate) scale : 0, before rounding.
  const auto run = [&](int64_t start, int64_t n, Buffer<C>& d_gate, Buffer<C>& d_up) {
    Buffer<C> dy_buffer, gate_buffer, up_buffer, sum, a, slope;
    LaneBuffer lane_buffer;
    const int64_t steps = round_up_to_step(n);
    const uint16_t* lanes = lane_buffer.fill(dropout, start, n);
    const C* dy_block = dys.block(start, n, dy_buffer);
    const C* gate = in.gate.load(in.xs, start, n, gate_buffer);
    const C* up = in.load_up(start, n, up_buffer, sum);
    kernels.fwd_and_grad[call.rule](gate, in.gate_bias.block(start), a.values, slope.values, steps);
    kernels.multiply(up, slope.values, steps);
    kernels.gradient(dy_block, slope.values, lanes, drop, d_gate.values, steps);
    kernels.gradient(dy_block, a.values, lanes, drop, d_up.values, steps);
    in.gate.store(dxs, start, n, d_gate.values);
    in.up.store(dxs, start, n, d_up.values);
  };

  if (dbias == nullptr) {
    for_blocks(dy.numel(), [&](int64_t start, int64_t n) {
      Buffer<C> d_gate, d_up;
      run(start, n, d_gate, d_up);
    });
    return;
  }
  ColumnSums<C> sums(dy.numel(), in.width, 2);
  sums.for_runs([&](int64_t start, int64_t n, C* sum) {
    Buffer<C> d_gate, d_up;
    run(start, n, d_gate, d_up);
    kernels.accumulate(d_gate.values, sum, n);
    kernels.accumulate(d_up.values, sum + sums.group_stride(), n);
  });
  sums.reduce(dbias->mutable_data_ptr<C>());
}

}  // namespace

Tensor gated_act_dropout(const Tensor& x, const OptionalTensor& bias, const OptionalTensor& rng_state,
                         int64_t threshold, const std::string& activation) {
  const ActCall call = check_gated_forward(kForward, x, bias, rng_state, threshold, activation);
  const Tensor y = empty(gated_shape(x), dtype_of(x), x);
  x.scalar_type() == ScalarType::Double ? forward<double>(x, bias, call, y) : forward<float>(x, bias, call, y);
  return y;
}

std::tuple<Tensor, Tensor> gated_act_dropout_grad(const Tensor& dy, const Tensor& x, const OptionalTensor& bias,
                                                  const OptionalTensor& rng_state, int64_t threshold,
                                                  const std::string& activation, bool needs_bias_grad) {
  const ActCall call = check_gated_backward(kBackward, dy, x, bias, rng_state, threshold, activation);
  const Tensor dbias = empty_sums(needs_bias_grad ? width_of(x) : 0, x);
  const Tensor* sums = needs_bias_grad ? &dbias : nullptr;
  Tensor dx = in_layout_of(x, [&](const Tensor& out) {
    dy.scalar_type() == ScalarType::Double ? backward<double>(dy, x, bias, call, out, sums)
                                           : backward<float>(dy, x, bias, call, out, sums);
  });
  return {dx, dbias};
}

}  // namespace ft
