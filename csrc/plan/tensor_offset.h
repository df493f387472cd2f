// Where the at::Tensor lies that a Python tensor wraps. Torch's C functions take its address, so that a Python tensor
// can be read by them.
//
// Nobody promises the place, so none is assumed: it is searched in tensors whose TensorImpl torch tells. What torch
// hands to operators as a tensor must be the address of such a word too: see fusedtrain/backends/step_tables.py.
#pragma once
#include <pybind11/pybind11.h>

#include <cstring>
#include <optional>

namespace ft {

namespace py = pybind11;

// The place, in bytes, of the word in which every one of the tensors has the address of its TensorImpl; none unless
// each has exactly one, and all at the same place. Words of the objects themselves are compared, and nothing that they
// point to is read.
inline std::optional<size_t> tensor_offset(const py::list& examples) {
  std::optional<size_t> offset;
  for (const py::handle x : examples) {
    const uintptr_t impl = x.attr("_cdata").cast<uintptr_t>();
    std::optional<size_t> here;
    for (size_t at = sizeof(PyObject); at + sizeof impl <= size_t(Py_TYPE(x.ptr())->tp_basicsize); at += sizeof impl) {
      uintptr_t word;
      std::memcpy(&word, reinterpret_cast<const char*>(x.ptr()) + at, sizeof word);
      if (word != impl) continue;
      if (here) return std::nullopt;
      here = at;
    }
    if (!here || (offset && *offset != *here)) return std::nullopt;
    offset = here;
  }
  return offset;
}

}  // namespace ft
