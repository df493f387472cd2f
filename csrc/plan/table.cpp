#include "plan/table.h"

#include <algorithm>

#include "plan/prefetch.h"

namespace ft {
namespace {

[[noreturn]] void refuse(const std::string& why) { throw std::invalid_argument(why); }

PyObject* item(PyObject* dict, const py::object& key) {
  PyObject* const value = PyDict_GetItemWithError(dict, key.ptr());
  if (value == nullptr && PyErr_Occurred()) throw py::error_already_set();
  return value;
}

// p.grad, without looking the name up: of a torch.Tensor or Parameter that is what it is.
py::object gradient(PyObject* p, const py::object& descriptor) {
  PyObject* const grad =
      Py_TYPE(descriptor.ptr())->tp_descr_get(descriptor.ptr(), p, reinterpret_cast<PyObject*>(Py_TYPE(p)));
  if (grad == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(grad);
}

py::str interned(const char* text) {
  PyObject* const s = PyUnicode_InternFromString(text);
  if (s == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::str>(s);
}

CounterType counter_type(const DLTensor& x) {
  if (x.ndim == 0 && x.dtype.lanes == 1) {
    if (x.dtype.code == kDLFloat && x.dtype.bits == 32) return CounterType::kFloat32;
    if (x.dtype.code == kDLFloat && x.dtype.bits == 64) return CounterType::kFloat64;
    if (x.dtype.code == kDLInt && x.dtype.bits == 64) return CounterType::kInt64;
  }
  refuse("a step count that is no 0-dim float32, float64 or int64");
}

DType float_type_or_refuse(const DLTensor& x, const char* what) {
  const std::optional<DType> type = float_type(x.dtype);
  if (!type) refuse(std::string("a ") + what + " of another type than float32, float64, float16 and bfloat16");
  return *type;
}

}  // namespace

StepTable::StepTable(const py::object& tensor_type, const py::object& parameter_type, py::list groups,
                     const std::vector<int64_t>& rows, py::dict state, const py::tuple& keys, const py::list& entries,
                     const py::list& steps, const py::object& hold, const StepLibrary& library, bool on_host)
    : reader_(tensor_type, library.look),
      library_(library),
      on_host_(on_host),
      parameter_type_(parameter_type),
      groups_(groups),
      state_(state),
      params_name_(interned("params")),
      grad_(tensor_type.attr("grad")) {
  if (!grad_.is(parameter_type.attr("grad"))) refuse("another torch.nn.Parameter.grad than that of torch.Tensor");
  if (keys.size() > size_t(kMaxStates) || rows.size() != groups.size()) refuse("more states or groups than expected");
  for (const py::handle key : keys) keys_.push_back(interned(key.cast<std::string>().c_str()));
  for (size_t i = 0; i < groups.size(); ++i) {
    const py::object group = groups[i];
    PyObject* const params = PyDict_Check(group.ptr()) ? item(group.ptr(), params_name_) : nullptr;
    if (params == nullptr || !PyList_Check(params)) refuse("a group without a list of parameters");
    const size_t begin = params_.size();
    for (Py_ssize_t k = 0; k < PyList_GET_SIZE(params); ++k) {
      PyObject* const p = keep(PyList_GET_ITEM(params, k));
      if (!reader_.is_plain(p) && reinterpret_cast<PyObject*>(Py_TYPE(p)) != parameter_type_.ptr()) {
        refuse("a parameter of another class than torch.Tensor and torch.nn.Parameter");
      }
      const py::object grad = gradient(p, grad_);
      params_.push_back({p, grad.is_none() ? -1 : int64_t(rows_.size())});
      if (grad.is_none()) continue;
      if (rows_.size() >= entries.size() || rows_.size() >= steps.size()) refuse("fewer states than gradients");
      const py::object entry = entries[rows_.size()], step = steps[rows_.size()];
      add_row(p, grad.ptr(), entry.ptr(), step.ptr(), rows[i]);
    }
    watched_groups_.push_back({keep(group.ptr()), begin, params_.size()});
  }
  if (rows_.empty()) refuse("no parameter with a gradient");
  items_.add(state.ptr());
  check_overlap();
  hold_states(hold);
  if (library_.new_plan != nullptr) {
    plan_ = Kept(library_.new_plan(), library_.delete_plan);
    if (plan_ == nullptr) throw std::bad_alloc();
  }
  grads_.reserve(rows_.size());
  work_ = chunker_.finish();
}

PyObject* StepTable::keep(PyObject* x) {
  kept_.push_back(py::reinterpret_borrow<py::object>(x));
  return x;
}

bool StepTable::read_here(PyObject* x, DLTensor& to) const {
  return reader_.read(x, to) && device_ && same_device(to.device, *device_);
}

StepTable::Known StepTable::know(PyObject* x, DLTensor& seen, const char* what) {
  if (!reader_.read(x, seen)) refuse(std::string("a ") + what + " that is not dense memory");
  if (!device_) {
    if (!(on_host_ ? is_host(seen.device) : is_cuda(seen.device))) refuse("a device that is not the library's");
    device_ = seen.device;
  }
  if (!same_device(seen.device, *device_)) refuse(std::string("a ") + what + " on another device than the first");
  Known known = {x, {}, dims_.size()};
  if (!reader_.look(x, known.sight) || known.sight.data != data_of(seen)) {
    refuse(std::string("a ") + what + " whose memory torch does not tell");
  }
  dims_.insert(dims_.end(), seen.shape, seen.shape + seen.ndim);
  dims_.insert(dims_.end(), seen.strides, seen.strides + seen.ndim);
  return known;
}

void StepTable::add_row(PyObject* p, PyObject* grad, PyObject* entry, PyObject* step, int64_t group) {
  StepRow row = {};
  DLTensor param, seen;
  if (reader_.is_negated(p) || reader_.is_negated(grad))
    refuse("a parameter or gradient that torch negates when it is read");
  known_.push_back(know(p, param, "parameter"));
  row.p = data_of(param);
  row.p_dtype = float_type_or_refuse(param, "parameter");
  row.numel = numel_of(param);
  row.group = int32_t(group);
  if (!is_dense(param)) refuse("a parameter that is not dense");
  const auto check_memory = [&](PyObject* x, const void* data, int64_t numel, const char* what) {
    if (numel > 0 && reader_.is_freed(x, data)) refuse(std::string("a ") + what + " without memory");
  };
  check_memory(p, row.p, row.numel, "parameter");

  if (!reader_.is_plain(grad)) refuse("a gradient of another class than torch.Tensor");
  known_grads_.push_back(know(grad, seen, "gradient"));
  known_grads_.back().object = nullptr;  // may be another object each time
  row.g_dtype = float_type_or_refuse(seen, "gradient");
  if (!same_layout(seen, param)) refuse("a gradient whose layout is not that of its parameter");

  if (!keys_.empty() && !PyDict_Check(entry)) refuse("a state that is no dict");
  for (size_t k = 0; k < keys_.size(); ++k) {
    PyObject* const x = item(entry, keys_[k]);
    if (x == nullptr || !reader_.is_plain(x)) refuse("a state that is missing or of another class than torch.Tensor");
    if (reader_.is_negated(x)) refuse("a state that torch negates when it is read");
    known_.push_back(know(keep(x), seen, "state"));
    row.state_dtype[k] = float_type_or_refuse(seen, "state");
    row.state[k] = data_of(seen);
    if (!same_layout(seen, param)) refuse("a state whose layout is not that of its parameter");
    check_memory(x, row.state[k], row.numel, "state");
  }
  if (!reader_.is_plain(step)) refuse("a step count of another class than torch.Tensor");
  known_.push_back(know(keep(step), seen, "step count"));
  row.step_type = counter_type(seen);
  row.step = data_of(seen);
  check_memory(step, row.step, 1, "step count");
  if (PyDict_Check(entry)) {
    entries_.add(entry);
    entry_dicts_.push_back(keep(entry));
  }
  chunker_.add(int64_t(rows_.size()), row.numel);
  rows_.push_back(row);
}

void StepTable::check_overlap() const {
  std::vector<std::pair<uintptr_t, uintptr_t>> pieces;
  const auto add = [&](const void* begin, int64_t bytes) {
    const uintptr_t address = reinterpret_cast<uintptr_t>(begin);
    if (bytes > 0) pieces.emplace_back(address, address + uintptr_t(bytes));
  };
  const Known* known = known_.data();
  for (const StepRow& row : rows_) {
    add((known++)->sight.data, row.numel * size_of(row.p_dtype));
    for (size_t k = 0; k < keys_.size(); ++k) add((known++)->sight.data, row.numel * size_of(row.state_dtype[k]));
    add((known++)->sight.data, size_of(row.step_type));
  }
  std::sort(pieces.begin(), pieces.end());
  for (size_t i = 1; i < pieces.size(); ++i) {
    if (pieces[i - 1].second > pieces[i].first) refuse("parameters, states or step counts that share memory");
  }
}

void StepTable::hold_states(const py::object& hold) {
  py::list states;
  for (size_t i = 0; i < known_.size(); ++i) {
    if (i % (keys_.size() + 2) != 0) states.append(py::reinterpret_borrow<py::object>(known_[i].object));
  }
  held_ = Kept(reinterpret_cast<void*>(hold(states).cast<uintptr_t>()), library_.release);
  // What the library has seen must be what was checked above: another thread may have been there in between.
  void* data;
  for (Known& known : known_) {
    if (!unchanged(known, true, data)) refuse("a state that changed meanwhile");
  }
}

bool StepTable::unchanged(Known& known, bool same_memory, void*& data) const {
  Sight now;
  if (!reader_.look(known.object, now)) return false;
  Sight& then = known.sight;
  data = now.data;
  then.shape = now.shape;
  if ((same_memory && now.data != then.data) || now.dtype != then.dtype || now.dims != then.dims ||
      now.device_type != then.device_type || now.device_index != then.device_index) {
    return false;
  }
  const int64_t* const dims = dims_.data() + known.dims;
  for (int64_t d = 0; d < now.dims; ++d) {  // one or two of them: too few to call memcmp for
    if (now.shape[d] != dims[d] || now.strides[d] != dims[now.dims + d]) return false;
  }
  return true;
}

bool StepTable::groups_unchanged(PyObject* groups) {
  if (groups != groups_.ptr() || PyList_GET_SIZE(groups) != Py_ssize_t(watched_groups_.size())) return false;
  for (size_t i = 0; i < watched_groups_.size(); ++i) {
    const Group& group = watched_groups_[i];
    if (PyList_GET_ITEM(groups, Py_ssize_t(i)) != group.group) return false;
    PyObject* const params = item(group.group, params_name_);
    if (params == nullptr || !PyList_Check(params) || PyList_GET_SIZE(params) != Py_ssize_t(group.end - group.begin)) {
      return false;
    }
    for (size_t k = group.begin; k < group.end; ++k) {
      if (PyList_GET_ITEM(params, Py_ssize_t(k - group.begin)) != params_[k].object) return false;
    }
  }
  return true;
}

bool StepTable::states_unchanged(PyObject* state) const {
  if (state != state_.ptr() || !items_.same(0, state)) return false;
  for (size_t i = 0; i < entry_dicts_.size(); ++i) {
    prefetch(entry_dicts_[std::min(i + kAhead, entry_dicts_.size() - 1)]);
    if (!entries_.same(i, entry_dicts_[i])) return false;
  }
  return library_.unchanged(held_.get()) != 0;
}

bool StepTable::take_tensors() {
  const size_t per_row = keys_.size() + 2, last = params_.size() - 1;
  for (size_t i = 0; i < params_.size(); ++i) {
    const Param& ahead = params_[std::min(i + kAhead, last)];
    prefetch(ahead.object);
    if (ahead.row >= 0) {
      prefetch_around(known_[size_t(ahead.row) * per_row].sight.shape);
      prefetch_around(known_grads_[size_t(ahead.row)].sight.shape);
    }
    const Param& param = params_[i];
    py::object grad = gradient(param.object, grad_);
    if (grad.is_none() != (param.row < 0)) return false;
    if (param.row < 0) continue;
    void* data = nullptr;
    if (!unchanged(known_[size_t(param.row) * per_row], true, data)) return false;
    if (!reader_.is_plain(grad.ptr())) return false;  // before it is looked at
    Known& known = known_grads_[size_t(param.row)];
    known.object = grad.ptr();
    if (!unchanged(known, false, data)) return false;
    StepRow& row = rows_[size_t(param.row)];
    if (row.numel > 0 && reader_.is_freed(grad.ptr(), data)) return false;
    // A gradient that is to be read as its negative is the imaginary part of conjugate numbers; its elements lie two
    // apart, so that of several one was seen by the layout.
    if (row.numel == 1 && reader_.is_negated(grad.ptr())) return false;
    row.g = data;
    grads_.push_back(grad.release().ptr());
  }
  return true;
}

void StepTable::drop_gradients() {
  ready_ = false;
  std::vector<PyObject*> grads;
  grads.swap(grads_);  // a destructor may call back
  for (PyObject* const grad : grads) Py_DECREF(grad);
  grads.clear();
  if (grads_.empty()) grads_.swap(grads);
}

int StepTable::traverse(visitproc visit, void* arg) const {
  for (const py::object* x : {&parameter_type_, &groups_, &state_, &grad_}) Py_VISIT(x->ptr());
  for (const py::object& x : kept_) Py_VISIT(x.ptr());
  for (PyObject* const x : grads_) Py_VISIT(x);
  const int stopped = items_.traverse(visit, arg);
  return stopped != 0 ? stopped : entries_.traverse(visit, arg);
}

void StepTable::clear() {
  drop_gradients();
  groups_ = state_ = py::none();
  items_.clear();
  entries_.clear();
  std::vector<py::object>().swap(kept_);
}

bool StepTable::holds(const py::object& groups, const py::object& state) {
  return groups_unchanged(groups.ptr()) && states_unchanged(state.ptr());
}

bool StepTable::refresh(const py::object& groups, const py::object& state) {
  if (busy_) return false;  // another thread is in the middle of a step
  drop_gradients();
  ready_ = holds(groups, state) && take_tensors();
  const bool valid = ready_;
  if (!valid) drop_gradients();
  return valid;
}

bool StepTable::has_double_gradient() const {
  return std::any_of(rows_.begin(), rows_.end(), [](const StepRow& row) { return row.g_dtype == DType::kDouble; });
}

py::list StepTable::written() const {
  py::list tensors;
  for (const Known& known : known_) tensors.append(py::reinterpret_borrow<py::object>(known.object));
  return tensors;
}

}  // namespace ft
