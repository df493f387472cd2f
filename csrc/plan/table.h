// The table of a step that is repeated: built once from an optimizer's parameters and states, checked before every use.
#pragma once
#include <pybind11/pybind11.h>

#include <string>
#include <vector>

#include "plan/library.h"
#include "plan/snapshot.h"
#include "plan/step_table.h"
#include "plan/tensors.h"

namespace ft {

class StepTable {
 public:
  // groups: the optimizer's param_groups; rows: the row of hyperparameters of each. state: the optimizer's state. For
  // each parameter with a gradient, in order: its entry in `state` (None if it has none), which has the states under
  // `keys`, and its count of steps. hold: the operator hold_tensors, to which functions of `library` belong. on_host:
  // whether the library is one for tensors of the host, and not of CUDA devices. Throws std::invalid_argument
  // if any of it is not what a table can hold: plain dense tensors of floating types, all on one device of the library.
  StepTable(const py::object& tensor_type, const py::object& parameter_type, py::list groups,
            const std::vector<int64_t>& rows, py::dict state, const py::tuple& keys, const py::list& entries,
            const py::list& steps, const py::object& hold, const StepLibrary& library, bool on_host);
  ~StepTable() { drop_gradients(); }
  StepTable(const StepTable&) = delete;
  StepTable& operator=(const StepTable&) = delete;

  // Whether the optimizer has the parameters and states that it had. Parameters and gradients are not looked into.
  bool holds(const py::object& groups, const py::object& state);

  // Reads everything anew and takes the gradients. False if anything but the gradients' memory differs from what the
  // table was built from; it must be built anew then.
  bool refresh(const py::object& groups, const py::object& state);

  // Whether step() would return false now: nothing is read for that.
  bool stands_aside() const;

  // For a step that is not step(): between the two, gradients are what refresh() saw and no other thread steps; end()
  // lets them go. begin() throws std::runtime_error unless refresh() returned true and no step came after it.
  void begin();
  void end();

  // One step, after a refresh() that returned true; lets the gradients go, whatever happens. hyper may be on the host,
  // the other tensors are on the device of the table. outputs: grad_norm, clip_coef and nonfinite in one row of three,
  // or None. False, and nothing was done, where the library stood aside.
  bool step(int32_t rule, const py::object& hyper, double norm_type, const py::object& inv_scale,
            const py::object& found_inf, double max_norm, bool skip_nonfinite, const py::object& outputs,
            const py::object& skipped_steps);

  int traverse(visitproc visit, void* arg) const;
  // Lets everything go; no refresh() is true any more.
  void clear();

  bool has_double_gradient() const;
  size_t size() const { return rows_.size(); }
  int64_t elements() const { return work_.elements; }
  size_t states() const { return keys_.size(); }
  // Of their gradients' memory only a step knows: between begin() and end().
  const std::vector<StepRow>& rows() const { return rows_; }
  bool stepping() const { return busy_; }
  // Parameters, states and steps: whatever a step writes.
  py::list written() const;

 private:
  // A tensor as it was when the table was built.
  struct Known {
    PyObject* object;
    Sight sight;  // its shape and strides are torch's, maybe of before: an address to fetch ahead, never read
    size_t dims;  // where its shape, and then its strides, are in dims_
  };
  struct Group {
    PyObject* group;
    size_t begin, end;  // of its parameters in params_
  };
  struct Param {
    PyObject* object;
    int64_t row;  // -1 if it has no gradient
  };

  void add_row(PyObject* p, PyObject* grad, PyObject* entry, PyObject* step, int64_t group);
  bool read_here(PyObject* x, DLTensor& to) const;
  Known know(PyObject* x, DLTensor& seen, const char* what);
  bool unchanged(Known& known, bool same_memory, void*& data) const;
  void hold_states(const py::object& hold);
  bool groups_unchanged(PyObject* groups);
  bool states_unchanged(PyObject* state) const;
  bool take_tensors();  // parameters must be what they were, gradients must fit
  void drop_gradients();
  void check_overlap() const;
  ScalarRef scalars(const py::object& x, int64_t count, const char* what) const;
  PyObject* keep(PyObject* x);

  TensorReader reader_;
  StepLibrary library_;
  bool on_host_;
  py::object parameter_type_, groups_, state_;
  std::vector<py::object> keys_;
  py::str params_name_;
  py::object grad_;               // torch.Tensor.grad
  std::vector<py::object> kept_;  // so that no address is used again while the table compares addresses

  std::vector<Group> watched_groups_;
  std::vector<Param> params_;
  Snapshot items_;    // of the optimizer's state
  Snapshot entries_;  // of the entries of all rows that have one in it
  std::vector<PyObject*> entry_dicts_;
  std::vector<Known> known_;  // of each row: p, the states, step
  // The states and steps. Not the parameters: torch.utils.swap_tensors refuses a tensor that is held elsewhere, and may
  // leave a parameter the same object with another tensor inside.
  Kept held_{nullptr, nullptr};
  Kept plan_{nullptr, nullptr};
  std::vector<Known> known_grads_;
  std::vector<int64_t> dims_;
  std::vector<PyObject*> grads_;  // owned between refresh() and step()
  bool ready_ = false, busy_ = false;

  std::optional<DLDevice> device_;  // that of the first parameter, which all tensors must be on
  std::vector<StepRow> rows_;
  Chunker chunker_;
  ChunkList work_;
};

}  // namespace ft
