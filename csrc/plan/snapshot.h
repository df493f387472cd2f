// What dicts hold, by identity: whether hundreds of groups are what they were is told faster than any of it is read.
#pragma once
#include <pybind11/pybind11.h>

#include <utility>
#include <vector>

namespace ft {

namespace py = pybind11;

class Snapshot {
 public:
  Snapshot() = default;
  explicit Snapshot(const py::list& dicts) {
    for (const py::handle dict : dicts) add(dict.ptr());
  }

  void add(PyObject* dict) {
    if (!PyDict_Check(dict)) throw std::invalid_argument("Snapshot: takes dicts only");
    PyObject *key, *value;
    for (Py_ssize_t at = 0; PyDict_Next(dict, &at, &key, &value);) {
      items_.emplace_back(py::reinterpret_borrow<py::object>(key), py::reinterpret_borrow<py::object>(value));
    }
    ends_.push_back(items_.size());
  }

  // Whether a dict has the very objects that number i had, in the same order. Walking the items is several times faster
  // than looking their keys up, and hashing a tensor would call Python.
  bool same(size_t i, PyObject* dict) const {
    size_t k = i == 0 ? 0 : ends_[i - 1];
    if (!PyDict_Check(dict) || PyDict_GET_SIZE(dict) != Py_ssize_t(ends_[i] - k)) return false;
    PyObject *key, *value;
    for (Py_ssize_t at = 0; PyDict_Next(dict, &at, &key, &value); ++k) {
      if (key != items_[k].first.ptr() || value != items_[k].second.ptr()) return false;
    }
    return true;
  }

  bool same(const py::list& dicts) const {
    if (dicts.size() != ends_.size()) return false;
    for (size_t i = 0; i < ends_.size(); ++i) {
      if (!same(i, PyList_GET_ITEM(dicts.ptr(), Py_ssize_t(i)))) return false;
    }
    return true;
  }

  int traverse(visitproc visit, void* arg) const {
    for (const auto& [key, value] : items_) {
      Py_VISIT(key.ptr());
      Py_VISIT(value.ptr());
    }
    return 0;
  }
  void clear() {
    ends_.clear();
    std::vector<std::pair<py::object, py::object>>().swap(items_);  // emptied before any destructor calls back
  }

 private:
  std::vector<std::pair<py::object, py::object>> items_;  // owned, so that no address is used again meanwhile
  std::vector<size_t> ends_;                              // of each dict in items_
};

}  // namespace ft
