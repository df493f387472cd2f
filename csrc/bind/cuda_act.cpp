// Activation + dropout and its gradients, for CUDA tensors.
#include "args/act_args.h"
#include "args/ops.h"
#include "bind/cuda_device.h"
#include "cuda/act_launch.h"

namespace ft {
namespace {

using torch::headeronly::ScalarType;

constexpr const char* kForward = "act_dropout";
constexpr const char* kInplace = "act_dropout_";
constexpr const char* kBackward = "act_dropout_grad";
constexpr const char* kGatedForward = "gated_act_dropout";
constexpr const char* kGatedBackward = "gated_act_dropout_grad";

// The arguments of a launch, and the contiguous copies that it reads: an allocator that frees them after the launch
// keeps them for the stream.
class Launch {
 public:
  // `like` has the dtype of the call; numel and width are those of the output of the forward.
  Launch(const char* op, const ActCall& call, const Tensor& like, int64_t numel, int64_t width) : op_(op) {
    args.rule = call.rule;
    args.dtype = check_tensor(op, "x", like);
    args.numel = numel;
    args.width = width;
    args.threshold = call.threshold;
    args.scale = call.scale();
    if (!call.rng_state) return;
    args.rng_state = call.rng_state->const_data_ptr<int64_t>();
    args.rng_stride = call.rng_state->stride(0);
  }

  const void* read(const Tensor& x) {
    held_.push_back(as_contiguous(x));
    return held_.back().const_data_ptr();
  }

  // A bias or residual. Kernels read it in the dtype of the call or in that of its arithmetic; another is converted to
  // the latter, as they would on the way.
  ActInput read_operand(const OptionalTensor& x) {
    if (!x) return {};
    const DType dtype = *float_type_here(*x), wide = args.dtype == DType::kDouble ? DType::kDouble : DType::kFloat;
    if (dtype == args.dtype || dtype == wide) return {read(*x), dtype};
    const bool is_double = wide == DType::kDouble;
    Tensor widened = empty(shape_vector(*x), is_double ? aoti_torch_dtype_float64() : aoti_torch_dtype_float32(), *x);
    return {read(torch::stable::copy_(widened, *x)), wide};
  }

  void sum_into(const Tensor& dbias, const Tensor& like, bool gated) {
    args.dbias = dbias.mutable_data_ptr();
    const int64_t bytes = ft_cuda_act_workspace(args.numel, args.width, args.dtype, gated);
    held_.push_back(empty({bytes}, aoti_torch_dtype_uint8(), like));
    args.workspace = held_.back().mutable_data_ptr();
  }

  void run(cudaError_t (*launcher)(const ActLaunch*, cudaStream_t), const OnDevice& device) const {
    check(launcher(&args, device.stream()), op_);
  }

  ActLaunch args;

 private:
  const char* op_;
  std::vector<Tensor> held_;
};

void forward(const char* op, const Tensor& x, const OptionalTensor& bias, const OptionalTensor& residual,
             const ActCall& call, const Tensor& y, const OnDevice& device) {
  Launch launch(op, call, x, x.numel(), width_of(x));
  launch.args.x = launch.read(x);
  launch.args.bias = launch.read_operand(bias);
  launch.args.residual = launch.read_operand(residual);
  launch.args.out = y.mutable_data_ptr();
  launch.args.mark = call.drops() && !residual && saves_output(call.rule);
  launch.run(&ft_cuda_act_dropout, device);
}

}  // namespace

Tensor act_dropout(const Tensor& x, const OptionalTensor& bias, const OptionalTensor& residual,
                   const OptionalTensor& rng_state, int64_t threshold, const std::string& activation) {
  const ActCall call = check_forward(kForward, x, bias, residual, rng_state, threshold, activation);
  const OnDevice device(x);
  return in_layout_of(x, [&](const Tensor& y) { forward(kForward, x, bias, residual, call, y, device); });
}

void act_dropout_(const Tensor& x, const OptionalTensor& bias, const OptionalTensor& residual,
                  const OptionalTensor& rng_state, int64_t threshold, const std::string& activation) {
  const ActCall call = check_forward(kInplace, x, bias, residual, rng_state, threshold, activation, true);
  const OnDevice device(x);
  const auto apart = [&](const OptionalTensor& other) { return !other || !may_overlap(x, *other); };
  if (x.is_contiguous() && apart(residual) && apart(bias)) {
    forward(kInplace, x, bias, residual, call, x, device);
    return;
  }
  const Tensor y = empty(shape_vector(x), dtype_of(x), x);
  forward(kInplace, x, bias, residual, call, y, device);
  Tensor target = x;
  torch::stable::copy_(target, y);
}

std::tuple<Tensor, Tensor> act_dropout_grad(const Tensor& dy, const OptionalTensor& saved, const OptionalTensor& bias,
                                            const OptionalTensor& rng_state, int64_t threshold,
                                            const std::string& activation, bool from_output, bool needs_bias_grad) {
  const ActCall call = check_backward(kBackward, dy, saved, bias, rng_state, threshold, activation, from_output);
  const OnDevice device(dy);
  const Tensor dbias = empty_sums(needs_bias_grad ? width_of(dy) : 0, dy);
  Tensor dx = in_layout_of(saved ? *saved : dy, [&](const Tensor& out) {
    Launch launch(kBackward, call, dy, dy.numel(), width_of(dy));
    launch.args.dy = launch.read(dy);
    // A rule that needs no input does not look at it: any values will do.
    launch.args.x = saved ? launch.read(*saved) : launch.args.dy;
    launch.args.bias = launch.read_operand(bias);
    launch.args.out = out.mutable_data_ptr();
    launch.args.from_output = from_output;
    if (needs_bias_grad) launch.sum_into(dbias, dy, false);
    launch.run(&ft_cuda_act_dropout_grad, device);
  });
  return {dx, dbias};
}

Tensor gated_act_dropout(const Tensor& x, const OptionalTensor& bias, const OptionalTensor& rng_state,
                         int64_t threshold, const std::string& activation) {
  const ActCall call = check_gated_forward(kGatedForward, x, bias, rng_state, threshold, activation);
  const OnDevice device(x);
  const Tensor y = empty(gated_shape(x), dtype_of(x), x);
  Launch launch(kGatedForward, call, x, y.numel(), width_of(y));
  launch.args.x = launch.read(x);
  launch.args.bias = launch.read_operand(bias);
  launch.args.out = y.mutable_data_ptr();
  launch.run(&ft_cuda_gated_act_dropout, device);
  return y;
}

std::tuple<Tensor, Tensor> gated_act_dropout_grad(const Tensor& dy, const Tensor& x, const OptionalTensor& bias,
                                                  const OptionalTensor& rng_state, int64_t threshold,
                                                  const std::string& activation, bool needs_bias_grad) {
  const ActCall call = check_gated_backward(kGatedBackward, dy, x, bias, rng_state, threshold, activation);
  const OnDevice device(x);
  const Tensor dbias = empty_sums(needs_bias_grad ? width_of(x) : 0, x);
  Tensor dx = in_layout_of(x, [&](const Tensor& out) {
    Launch launch(kGatedBackward, call, dy, dy.numel(), width_of(dy));
    launch.args.dy = launch.read(dy);
    launch.args.x = launch.read(x);
    launch.args.bias = launch.read_operand(bias);
    launch.args.out = out.mutable_data_ptr();
    if (needs_bias_grad) launch.sum_into(dbias, x, true);
    launch.run(&ft_cuda_gated_act_dropout_grad, device);
  });
  return {dx, dbias};
}

}  // namespace ft
