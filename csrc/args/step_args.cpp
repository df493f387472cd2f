#include "args/step_args.h"

#include <algorithm>

#include "rules/updates.h"

namespace ft {
namespace {

using torch::headeronly::ScalarType;

struct RuleInfo {
  int32_t index = -1;
  int states = 0, hyper = 0;
};

template <class... Rules>
RuleInfo find_rule(const char* op, const std::string& name, TypeList<Rules...> rules) {
  static constexpr int kStates[] = {Rules::kStates...}, kHyper[] = {Rules::kHyper...};
  const int32_t index = index_of(name, rules);
  require(index >= 0, op, "unknown rule '", name, "'; choose one of ", names(rules));
  return {index, kStates[index], kHyper[index]};
}

void check_length(const char* op, const char* name, size_t length, size_t expected) {
  require(length == expected, op, name, " has ", length, " entries; it must have ", expected);
}

// On the host, or where the parameters are: then nobody has to wait for hyperparameters that are computed there.
const double* check_hyper(const char* op, const Tensor& hyper, const RuleInfo& rule, const std::string& name) {
  require((hyper.is_cpu() || is_here(hyper)) && hyper.scalar_type() == ScalarType::Double && hyper.dim() == 2 &&
              hyper.is_contiguous() && hyper.size(1) == kLaunchHyper + rule.hyper,
          op, "hyper has shape ", shape_of(hyper), " and dtype ", dtype_name(hyper), "; for ", name,
          " it must be a contiguous fp64 (groups, ", kLaunchHyper + rule.hyper, ") on the CPU");
  return hyper.const_data_ptr<double>();
}

// Whether two tensors have the same shape and their elements in the same order of memory.
bool same_layout(const Tensor& a, const Tensor& b) {
  const int64_t dims = a.dim();
  if (b.dim() != dims) return false;
  const auto sizes = a.sizes(), other_sizes = b.sizes();
  if (!std::equal(sizes.begin(), sizes.end(), other_sizes.begin())) return false;
  if (a.numel() < 2) return true;
  const auto strides = a.strides(), other_strides = b.strides();
  for (int64_t d = 0; d < dims; ++d) {
    if (sizes[size_t(d)] != 1 && strides[size_t(d)] != other_strides[size_t(d)]) return false;
  }
  return true;
}

// Checks list[i] against params[param_index], whose shape and strides it must have.
DType check_like(const char* op, const char* list, int64_t i, const Tensor& x, int64_t param_index, const Tensor& p) {
  const DType dtype = check_item(op, list, i, x);
  if (same_layout(x, p)) return dtype;
  const std::string name = item(list, i), param = item("params", param_index);
  check_same_shape(op, name.c_str(), x, param.c_str(), p);
  require(false, op, name, " has other strides than ", param, ", both of shape ", shape_of(p),
          "; copy it with torch.empty_like(param).copy_(...)");
  return dtype;
}

CounterType check_step(const char* op, int64_t i, const Tensor& x) {
  if (is_here(x) && x.numel() == 1) {
    if (!has_memory(x)) check_memory(op, item("steps", i).c_str(), x);
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
  require(is_here(x), op, name, " is not ", kHere, "; move it to the device of the parameters");
  require(false, op, name, " has shape ", shape_of(x), " and dtype ", dtype_name(x),
          "; it must be one element of float32, float64 or int64");
  return CounterType::kFloat32;
}

int64_t* check_counter(const char* op, const char* name, const OptionalTensor& x) {
  if (!x) return nullptr;
  require(is_here(*x) && x->scalar_type() == ScalarType::Long && x->numel() == 1, op, name, " has shape ", shape_of(*x),
          " and dtype ", dtype_name(*x), "; it must be one int64 ", kHere);
  check_memory(op, name, *x);
  return static_cast<int64_t*>(x->data_ptr());
}

// Throws unless every tensor is on the device of the first parameter.
void check_devices(const char* op, const TensorList& params, const char* list, const TensorList& xs) {
  if (params.empty()) return;
  const int32_t wanted = params[0].get_device_index();
  for (size_t i = 0; i < xs.size(); ++i) {
    if (xs[i].get_device_index() != wanted) {
      check_same_device(op, item(list, int64_t(i)).c_str(), xs[i], "params[0]", params[0]);
    }
  }
}

}  // namespace

DType check_item(const char* op, const char* list, int64_t i, const Tensor& x) {
  const std::optional<DType> type = float_type_here(x);
  return type && has_memory(x) ? *type : check_tensor(op, item(list, i).c_str(), x);
}

Layout layout_of(const Tensor& x) {
  if (x.is_contiguous() || x.numel() == 0) return Layout::kDense;
  std::vector<std::pair<int64_t, int64_t>> dims;  // stride, size
  for (int64_t d = 0; d < x.dim(); ++d) {
    if (x.size(d) > 1) dims.emplace_back(x.stride(d), x.size(d));
  }
  std::sort(dims.begin(), dims.end());
  int64_t extent = 1;
  bool gaps = false;
  for (const auto& [stride, size] : dims) {
    if (stride < extent) return Layout::kOverlap;
    gaps |= stride > extent;
    extent += stride * (size - 1);
  }
  return gaps ? Layout::kGaps : Layout::kDense;
}

ScalarRef check_scalar(const char* op, const char* name, const OptionalTensor& x) {
  if (!x) return {};
  const DType dtype = check_tensor(op, name, *x);
  require(x->numel() == 1, op, name, " has shape ", shape_of(*x), "; it must have one element");
  return {x->data_ptr(), dtype};
}

void Written::add(const char* list, int64_t i, const void* begin, int64_t bytes) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(begin);
  if (bytes > 0) pieces_.push_back({address, address + uintptr_t(bytes), list, i});
}

void Written::check(const char* op) {
  const auto before = [](const Piece& a, const Piece& b) { return a.begin < b.begin; };
  if (!std::is_sorted(pieces_.begin(), pieces_.end(), before)) std::sort(pieces_.begin(), pieces_.end(), before);
  for (size_t k = 1; k < pieces_.size(); ++k) {
    const Piece &a = pieces_[k - 1], &b = pieces_[k];
    if (a.end <= b.begin) continue;
    require(false, op, item(a.list, a.i), " and ", item(b.list, b.i),
            " share memory, and both would be written; pass each tensor once, and no views of one another");
  }
}

Runs::Runs(const char* op, const char* name, const TensorList& tensors) {
  for (size_t i = 0; i < tensors.size(); ++i) check_item(op, name, int64_t(i), tensors[i]);
  check_devices(op, tensors, name, tensors);
  runs.reserve(tensors.size());
  for (size_t i = 0; i < tensors.size(); ++i) {
    const bool copy = layout_of(tensors[i]) != Layout::kDense;
    dense.push_back(copy ? as_contiguous(tensors[i]) : tensors[i]);
    copied.push_back(copy);
    runs.push_back({dense.back().const_data_ptr(), dense.back().numel(), check_tensor(op, name, dense.back())});
  }
}

void Runs::put_back(const TensorList& tensors) const {
  for (size_t i = 0; i < tensors.size(); ++i) {
    Tensor target = tensors[i];
    if (copied[i]) torch::stable::copy_(target, dense[i]);
  }
}

void check_scaled(const char* op, const TensorList& grads, double max_norm) {
  require(max_norm >= 0, op, "max_norm is ", max_norm, "; it must be >= 0");
  Written written;
  for (size_t i = 0; i < grads.size(); ++i) {
    const DType dtype = check_item(op, "grads", int64_t(i), grads[i]);
    const Layout layout = layout_of(grads[i]);
    require(layout != Layout::kOverlap, op, "grads[", i,
            "] has elements that share memory, as after expand(); pass a clone");
    if (layout == Layout::kDense) {
      written.add("grads", int64_t(i), grads[i].const_data_ptr(), grads[i].numel() * size_of(dtype));
    }
  }
  written.check(op);
}

CheckedStep::CheckedStep(const char* op, const std::string& rule_name, const TensorList& params,
                         const TensorList& grads, const TensorList& states, const TensorList& steps,
                         const Tensor& hyper, const std::vector<int64_t>& group, const OptionalTensor& norm,
                         const OptionalTensor& nonfinite, const OptionalTensor& inv_scale,
                         const OptionalTensor& found_inf, double max_norm, bool skip_nonfinite,
                         const OptionalTensor& grad_norm, const OptionalTensor& clip_coef,
                         const OptionalTensor& skipped_steps) {
  const RuleInfo rule = find_rule(op, rule_name, Updates{});
  const size_t n = params.size();
  check_length(op, "grads", grads.size(), n);
  check_length(op, "states", states.size(), n * size_t(rule.states));
  check_length(op, "steps", steps.size(), n);
  check_length(op, "group", group.size(), n);
  require(max_norm == max_norm, op, "max_norm is NaN; it must be >= 0, or negative for no clipping");

  call.rule = rule.index;
  call.hyper = check_hyper(op, hyper, rule, rule_name);
  call.hyper_here = !hyper.is_cpu();
  call.hyper_rows = hyper.size(0);
  call.hyper_columns = hyper.size(1);
  call.norm = check_scalar(op, "norm", norm);
  call.nonfinite = check_scalar(op, "nonfinite", nonfinite);
  call.inv_scale = check_scalar(op, "inv_scale", inv_scale);
  call.found_inf = check_scalar(op, "found_inf", found_inf);
  call.max_norm = max_norm;
  call.skip_nonfinite = skip_nonfinite;
  call.grad_norm = check_scalar(op, "grad_norm", grad_norm);
  call.clip_coef = check_scalar(op, "clip_coef", clip_coef);
  call.skipped_steps = check_counter(op, "skipped_steps", skipped_steps);
  require(max_norm < 0 || norm || n == 0, op, "max_norm is ", max_norm, " but norm is None; pass that of global_norm");
  require(!skip_nonfinite || nonfinite || n == 0, op, "skip_nonfinite is True but nonfinite is None");
  check_devices(op, params, "params", params);
  check_devices(op, params, "grads", grads);
  check_devices(op, params, "states", states);
  check_devices(op, params, "steps", steps);

  rows.resize(n);
  Written written;
  for (size_t i = 0; i < n; ++i) {
    const int64_t k = int64_t(i);
    const Tensor& p = params[i];
    StepRow& row = rows[i];
    row.p_dtype = check_item(op, "params", k, p);
    if (layout_of(p) != Layout::kDense) {
      require(false, op, item("params", k), " of shape ", shape_of(p),
              " is not dense in memory: it has gaps between its elements, or elements that share memory; pass a "
              "contiguous copy and copy the result back");
    }
    row.g_dtype = check_like(op, "grads", k, grads[i], k, p);
    row.numel = p.numel();
    row.p = p.data_ptr();
    row.g = grads[i].data_ptr();
    written.add("params", k, row.p, row.numel * size_of(row.p_dtype));
    for (int slot = 0; slot < rule.states; ++slot) {
      const Tensor& s = states[size_t(slot) * n + i];
      row.state_dtype[slot] = check_like(op, "states", k + slot * int64_t(n), s, k, p);
      row.state[slot] = s.data_ptr();
      written.add("states", k + slot * int64_t(n), row.state[slot], row.numel * size_of(row.state_dtype[slot]));
    }
    row.step_type = check_step(op, k, steps[i]);
    row.step = steps[i].data_ptr();
    written.add("steps", k, row.step, row.step_type == CounterType::kFloat32 ? 4 : 8);
    require(group[i] >= 0 && group[i] < call.hyper_rows, op, "group[", i, "] is ", group[i], ", but hyper has ",
            call.hyper_rows, " rows");
    row.group = int32_t(group[i]);
  }
  written.check(op);
  call.rows = rows.data();
  call.row_count = int64_t(n);
}

}  // namespace ft
