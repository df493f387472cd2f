// One step of an update rule over a list of CPU tensors.
#include "cpu/step_args.h"
#include "cpu/step_launch.h"
#include "cpu/step_ops.h"
#include "rules/updates.h"

namespace ft {
namespace {

using torch::headeronly::ScalarType;

constexpr const char* kOp = "optim_step_";

struct RuleInfo {
  int32_t index = -1;
  int states = 0, hyper = 0;
};

template <class... Rules>
RuleInfo find_rule(const std::string& name, TypeList<Rules...> rules) {
  RuleInfo info;
  int32_t index = 0;
  ((name == Rules::kName ? void(info = {index, Rules::kStates, Rules::kHyper}) : void(), ++index), ...);
  require(info.index >= 0, kOp, "unknown rule '", name, "'; choose one of ", names(rules));
  return info;
}

void check_length(const char* name, size_t length, size_t expected) {
  require(length == expected, kOp, name, " has ", length, " entries; it must have ", expected);
}

const double* check_hyper(const Tensor& hyper, const RuleInfo& rule, const std::string& name) {
  require(hyper.is_cpu() && hyper.scalar_type() == ScalarType::Double && hyper.dim() == 2 && hyper.is_contiguous() &&
              hyper.size(1) == kLaunchHyper + rule.hyper,
          kOp, "hyper has shape ", shape_of(hyper), " and dtype ", torch::headeronly::toString(hyper.scalar_type()),
          "; for ", name, " it must be a contiguous fp64 (groups, ", kLaunchHyper + rule.hyper, ") on the CPU");
  return hyper.const_data_ptr<double>();
}

// Checks list[i] against params[param_index], whose shape and strides it must have.
DType check_like(const char* list, int64_t i, const Tensor& x, int64_t param_index, const Tensor& p) {
  const DType dtype = check_item(kOp, list, i, x);
  if (same_layout(x, p)) return dtype;
  const std::string name = item(list, i), param = item("params", param_index);
  check_same_shape(kOp, name.c_str(), x, param.c_str(), p);
  require(false, kOp, name, " has other strides than ", param, ", both of shape ", shape_of(p),
          "; copy it with torch.empty_like(param).copy_(...)");
  return dtype;
}

CounterType check_step(int64_t i, const Tensor& x) {
  if (x.is_cpu() && x.numel() == 1) {
    switch (x.scalar_type()) {
      case ScalarType::Float:
        return CounterType::kFloat32;
      case ScalarType::Double:
        return CounterType::kFloat64;
      case ScalarType::Long:
        return CounterType::kInt64;
      default:
        break;
    }
  }
  const std::string name = item("steps", i);
  require(x.is_cpu(), kOp, name, " is not on the CPU; move it to the device of the parameters");
  require(false, kOp, name, " has shape ", shape_of(x), " and dtype ", torch::headeronly::toString(x.scalar_type()),
          "; it must be one element of float32, float64 or int64");
  return CounterType::kFloat32;
}

}  // namespace

void optim_step_(const std::string& rule_name, const TensorList& params, const TensorList& grads,
                 const TensorList& states, const TensorList& steps, const Tensor& hyper,
                 const std::vector<int64_t>& group, const OptionalTensor& norm, const OptionalTensor& nonfinite,
                 const OptionalTensor& inv_scale, const OptionalTensor& found_inf, double max_norm, bool skip_nonfinite,
                 const OptionalTensor& grad_norm, const OptionalTensor& clip_coef,
                 const OptionalTensor& skipped_steps) {
  const RuleInfo rule = find_rule(rule_name, Updates{});
  const size_t n = params.size();
  check_length("grads", grads.size(), n);
  check_length("states", states.size(), n * size_t(rule.states));
  check_length("steps", steps.size(), n);
  check_length("group", group.size(), n);
  require(max_norm == max_norm, kOp, "max_norm is NaN; it must be >= 0, or negative for no clipping");

  StepCall call;
  call.rule = rule.index;
  call.hyper = check_hyper(hyper, rule, rule_name);
  call.hyper_columns = hyper.size(1);
  call.norm = check_scalar(kOp, "norm", norm);
  call.nonfinite = check_scalar(kOp, "nonfinite", nonfinite);
  call.inv_scale = check_scalar(kOp, "inv_scale", inv_scale);
  call.found_inf = check_scalar(kOp, "found_inf", found_inf);
  call.max_norm = max_norm;
  call.skip_nonfinite = skip_nonfinite;
  call.grad_norm = check_scalar(kOp, "grad_norm", grad_norm);
  call.clip_coef = check_scalar(kOp, "clip_coef", clip_coef);
  call.skipped_steps = check_counter(kOp, "skipped_steps", skipped_steps);
  require(max_norm < 0 || norm || n == 0, kOp, "max_norm is ", max_norm, " but norm is None; pass that of global_norm");
  require(!skip_nonfinite || nonfinite || n == 0, kOp, "skip_nonfinite is True but nonfinite is None");

  const int64_t groups = hyper.size(0);
  std::vector<StepRow> rows(n);
  Written written;
  Chunker chunker;
  for (size_t i = 0; i < n; ++i) {
    const int64_t k = int64_t(i);
    const Tensor& p = params[i];
    StepRow& row = rows[i];
    row.p_dtype = check_item(kOp, "params", k, p);
    if (layout_of(p) != Layout::kDense) {
      require(false, kOp, item("params", k), " of shape ", shape_of(p),
              " is not dense in memory: it has gaps between its elements, or elements that share memory; pass a "
              "contiguous copy and copy the result back");
    }
    row.g_dtype = check_like("grads", k, grads[i], k, p);
    row.numel = p.numel();
    row.p = p.data_ptr();
    row.g = grads[i].data_ptr();
    written.add("params", k, row.p, row.numel * size_of(row.p_dtype));
    for (int slot = 0; slot < rule.states; ++slot) {
      const Tensor& s = states[size_t(slot) * n + i];
      row.state_dtype[slot] = check_like("states", k + slot * int64_t(n), s, k, p);
      row.state[slot] = s.data_ptr();
      written.add("states", k + slot * int64_t(n), row.state[slot], row.numel * size_of(row.state_dtype[slot]));
    }
    row.step_type = check_step(k, steps[i]);
    row.step = steps[i].data_ptr();
    written.add("steps", k, row.step, row.step_type == CounterType::kFloat32 ? 4 : 8);
    require(group[i] >= 0 && group[i] < groups, kOp, "group[", i, "] is ", group[i], ", but hyper has ", groups,
            " rows");
    row.group = int32_t(group[i]);
    chunker.add(k, row.numel);
  }
  written.check(kOp);
  call.rows = rows.data();
  call.row_count = int64_t(n);
  call.work = chunker.finish();
  step(call);
}

}  // namespace ft
