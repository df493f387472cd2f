// Classes whose objects own references to Python objects, as the garbage collector wants them: an optimizer that one of
// its parameters refers to is a cycle through them.
#pragma once
#include <pybind11/pybind11.h>

namespace ft {

// For py::class_<T>; T has traverse(visit, arg), which visits every reference that it owns, and clear().
template <class T>
pybind11::custom_type_setup collected() {
  return pybind11::custom_type_setup([](PyHeapTypeObject* heap_type) {
    // Null until the constructor is done: the collector may come by while it runs.
    static constexpr auto object_of = [](PyObject* self) -> T* {
      auto holder = reinterpret_cast<pybind11::detail::instance*>(self)->get_value_and_holder();
      return holder.holder_constructed() ? static_cast<T*>(holder.value_ptr()) : nullptr;
    };
    PyTypeObject& type = heap_type->ht_type;
    type.tp_flags |= Py_TPFLAGS_HAVE_GC;
    type.tp_traverse = [](PyObject* self, visitproc visit, void* arg) -> int {
      Py_VISIT(Py_TYPE(self));
      const T* const object = object_of(self);
      return object == nullptr ? 0 : object->traverse(visit, arg);
    };
    type.tp_clear = [](PyObject* self) -> int {
      T* const object = object_of(self);
      if (object != nullptr) object->clear();
      return 0;
    };
  });
}

}  // namespace ft
