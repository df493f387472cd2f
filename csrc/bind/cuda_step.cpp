// The norm of a list of tensors and of each of them, the scaling of gradients to a norm, and a step of an update rule,
// for CUDA tensors.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include "args/ops.h"
#include "args/step_args.h"
#include "bind/cuda_device.h"
#include "cuda/step_launch.h"
#include "cuda/table.h"

namespace ft {
namespace {

constexpr const char* kNorm = "global_norm";
constexpr const char* kNorms = "tensor_norms";
constexpr const char* kScale = "clip_scale_";
constexpr const char* kStep = "optim_step_";

char* data_of(const Tensor& bytes) { return static_cast<char*>(bytes.data_ptr()); }

std::vector<DeviceRun> device_runs(const Runs& list) {
  std::vector<DeviceRun> runs;
  runs.reserve(list.runs.size());
  for (const Run& run : list.runs) runs.push_back({const_cast<void*>(run.x), run.numel, run.dtype});
  return runs;
}

// A scalar, or an array of some shape, of a result.
ScalarRef new_result(const std::vector<int64_t>& shape, bool is_double, const Tensor& like, Tensor& owner) {
  owner = empty(shape, is_double ? aoti_torch_dtype_float64() : aoti_torch_dtype_float32(), like);
  return {owner.data_ptr(), is_double ? DType::kDouble : DType::kFloat};
}

// What a norm of runs is told apart from where it puts its results; its table is in `memory`.
NormArgs norm_args(const std::vector<DeviceRun>& runs, double norm_type, const TableLayout<DeviceRun>& layout,
                   char* memory) {
  NormArgs args;
  args.norm_type = norm_type;
  for (const DeviceRun& run : runs) args.has_double |= run.dtype == DType::kDouble;
  args.partials = layout.partial(memory);
  return args;
}

void check_norm(const char* op, const TensorList& tensors, double norm_type) {
  require(norm_type > 0, op, "norm_type is ", norm_type, "; it must be > 0, or inf");
  require(!tensors.empty(), op, "tensors is empty, so there is no device to put the norm on; pass a tensor");
}

// Throws unless a scalar is on the device that the kernel runs on: its memory may be out of reach of others.
void check_with(const char* name, const OptionalTensor& x, const Tensor& param) {
  if (x) check_same_device(kStep, name, *x, "params[0]", param);
}

}  // namespace

std::tuple<Tensor, Tensor> global_norm(const TensorList& tensors, double norm_type) {
  check_norm(kNorm, tensors, norm_type);
  const OnDevice here(tensors[0]);
  const Runs list(kNorm, "tensors", tensors);
  const std::vector<DeviceRun> runs = device_runs(list);
  const TableLayout<DeviceRun> layout(runs.data(), int64_t(runs.size()), 0);
  const Tensor workspace = empty_bytes(layout.bytes, tensors[0].get_device_index());
  char* const memory = data_of(workspace);

  NormArgs args = norm_args(runs, norm_type, layout, memory);
  args.tickets = layout.counter(memory, layout.kNormTicket);
  Tensor norm, nonfinite;
  args.norm = new_result({}, args.has_double, tensors[0], norm);
  args.nonfinite = new_result({}, false, tensors[0], nonfinite);
  check(layout.upload(runs.data(), nullptr, memory, here.stream()), kNorm);
  const DeviceTable<DeviceRun> table = layout.table(memory);
  check(ft_cuda_norm_of_runs(&table, &args, here.stream()), kNorm);
  return {norm, nonfinite};
}

Tensor tensor_norms(const TensorList& tensors, double norm_type) {
  check_norm(kNorms, tensors, norm_type);
  const OnDevice here(tensors[0]);
  const Runs list(kNorms, "tensors", tensors);
  const std::vector<DeviceRun> runs = device_runs(list);
  const TableLayout<DeviceRun> layout(runs.data(), int64_t(runs.size()), 0);
  const Tensor workspace = empty_bytes(layout.bytes_by_chunk(), tensors[0].get_device_index());
  char* const memory = data_of(workspace);

  NormArgs args = norm_args(runs, norm_type, layout, memory);
  args.tickets = layout.pending(memory);
  Tensor norms;
  args.norm = new_result({int64_t(runs.size())}, args.has_double, tensors[0], norms);
  check(layout.upload(runs.data(), nullptr, memory, here.stream()), kNorms);
  const DeviceTable<DeviceRun> table = layout.table(memory);
  check(ft_cuda_tensor_norms(&table, &args, here.stream()), kNorms);
  return norms;
}

void clip_scale_(const TensorList& grads, const Tensor& norm, double max_norm) {
  check_scaled(kScale, grads, max_norm);
  const ScalarRef total = check_scalar(kScale, "norm", norm);
  if (grads.empty()) return;
  check_same_device(kScale, "norm", norm, "grads[0]", grads[0]);
  const OnDevice here(grads[0]);
  const Runs list(kScale, "grads", grads);
  const std::vector<DeviceRun> runs = device_runs(list);
  const TableLayout<DeviceRun> layout(runs.data(), int64_t(runs.size()), 0);
  const Tensor workspace = empty_bytes(layout.bytes, grads[0].get_device_index());
  check(layout.upload(runs.data(), nullptr, data_of(workspace), here.stream()), kScale);
  const DeviceTable<DeviceRun> table = layout.table(data_of(workspace));
  check(ft_cuda_clip_scale(&table, total, max_norm, here.stream()), kScale);
  list.put_back(grads);
}

void optim_step_(const std::string& rule, const TensorList& params, const TensorList& grads, const TensorList& states,
                 const TensorList& steps, const Tensor& hyper, const std::vector<int64_t>& group,
                 const OptionalTensor& norm, const OptionalTensor& nonfinite, const OptionalTensor& inv_scale,
                 const OptionalTensor& found_inf, double max_norm, bool skip_nonfinite, const OptionalTensor& grad_norm,
                 const OptionalTensor& clip_coef, const OptionalTensor& skipped_steps) {
  const CheckedStep checked(kStep, rule, params, grads, states, steps, hyper, group, norm, nonfinite, inv_scale,
                            found_inf, max_norm, skip_nonfinite, grad_norm, clip_coef, skipped_steps);
  if (params.empty()) return;
  const StepCall& call = checked.call;
  const Tensor& like = params[0];
  if (call.hyper_here) check_same_device(kStep, "hyper", hyper, "params[0]", like);
  check_with("norm", norm, like);
  check_with("nonfinite", nonfinite, like);
  check_with("inv_scale", inv_scale, like);
  check_with("found_inf", found_inf, like);
  check_with("grad_norm", grad_norm, like);
  check_with("clip_coef", clip_coef, like);
  check_with("skipped_steps", skipped_steps, like);

  const OnDevice here(like);
  const TableLayout<StepRow> layout(call.rows, call.row_count, host_hyper_size(call));
  const Tensor workspace = empty_bytes(layout.uploaded, like.get_device_index());
  check(layout.upload(call.rows, host_hyper(call), data_of(workspace), here.stream()), kStep);
  const StepArgs args = step_args(call, layout, data_of(workspace));
  check(ft_cuda_optim_step(call.rule, &args, here.stream()), kStep);
}

}  // namespace ft
