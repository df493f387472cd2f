// A step over a table that holds, by the table's library.
#include <algorithm>

#include "plan/table.h"

namespace ft {

ScalarRef StepTable::scalars(const py::object& x, int64_t count, const char* what) const {
  if (x.is_none()) return {};
  DLTensor seen;
  std::optional<DType> type;
  if (reader_.is_plain(x.ptr()) && read_here(x.ptr(), seen)) type = float_type(seen.dtype);
  if (!type || numel_of(seen) != count || !is_dense(seen)) {
    throw std::invalid_argument(std::string("StepTable.step: ") + what + " must be " + std::to_string(count) +
                                " element(s) of a floating type on the device of the table");
  }
  return {data_of(seen), *type};
}

bool StepTable::stands_aside() const {
  return library_.stands_aside != nullptr && device_ && library_.stands_aside(device_->device_id) != 0;
}

void StepTable::begin() {
  if (!ready_ || busy_)
    throw std::runtime_error("StepTable.step: call refresh() before every step, and step only if it is true");
  busy_ = true;
}

void StepTable::end() {
  busy_ = false;
  drop_gradients();
}

bool StepTable::step(int32_t rule, const py::object& hyper, double norm_type, const py::object& inv_scale,
                     const py::object& found_inf, double max_norm, bool skip_nonfinite, const py::object& outputs,
                     const py::object& skipped_steps) {
  begin();
  struct End {
    StepTable& table;
    ~End() { table.end(); }
  } const whatever_happens{*this};
  StepCall call = {};
  DLTensor table;
  int32_t groups = 0;
  for (const StepRow& row : rows_) groups = std::max(groups, row.group + 1);
  if (!reader_.is_plain(hyper.ptr()) || !reader_.read(hyper.ptr(), table) ||
      !(is_host(table.device) || (device_ && same_device(table.device, *device_))) ||
      float_type(table.dtype) != DType::kDouble || table.ndim != 2 || !is_dense(table) || table.shape[0] < groups ||
      (table.shape[0] > 1 && table.strides[0] != table.shape[1])) {
    throw std::invalid_argument(
        "StepTable.step: hyper must be a contiguous fp64 (groups, columns) on the CPU or the device of the table");
  }
  call.hyper = static_cast<const double*>(data_of(table));
  call.hyper_here = !is_host(table.device);
  call.hyper_rows = table.shape[0];
  call.hyper_columns = table.shape[1];
  call.rows = rows_.data();
  call.row_count = int64_t(rows_.size());
  call.device = device_ ? device_->device_id : 0;
  call.work = work_;
  call.rule = rule;
  call.norm_type = norm_type;
  call.max_norm = max_norm;
  call.skip_nonfinite = skip_nonfinite;
  call.inv_scale = scalars(inv_scale, 1, "inv_scale");
  call.found_inf = scalars(found_inf, 1, "found_inf");
  if (!outputs.is_none()) {
    const ScalarRef row = scalars(outputs, 3, "outputs");
    const auto at = [&](int64_t i) {
      return ScalarRef{static_cast<char*>(row.data) + i * size_of(row.dtype), row.dtype};
    };
    call.grad_norm = at(0);
    call.clip_coef = at(1);
    call.nonfinite_out = at(2);
  }
  if (!skipped_steps.is_none()) {
    DLTensor seen;
    if (!reader_.is_plain(skipped_steps.ptr()) || !read_here(skipped_steps.ptr(), seen) || seen.dtype.code != kDLInt ||
        seen.dtype.bits != 64 || numel_of(seen) != 1) {
      throw std::invalid_argument("StepTable.step: skipped_steps must be one int64 on the device of the table");
    }
    call.skipped_steps = static_cast<int64_t*>(data_of(seen));
  }
  if (library_.step == nullptr) throw std::runtime_error("StepTable.step: its library takes no steps by itself");
  char message[512] = "";
  int status;
  {
    py::gil_scoped_release release;
    status = library_.step(plan_.get(), &call, message, sizeof message);
  }
  if (status == kFailed) throw std::runtime_error(message);
  return status == kStepped;
}

}  // namespace ft
