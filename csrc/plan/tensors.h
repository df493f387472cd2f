// Tensors of Python seen from C++ without torch's C++: through the C functions that torch offers, for DLPack or else.
#pragma once
#include <ATen/dlpack.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <stdexcept>
#include <vector>

#include "plan/dtype.h"
#include "plan/sight.h"

namespace ft {

namespace py = pybind11;

inline void* data_of(const DLTensor& x) { return static_cast<char*>(x.data) + x.byte_offset; }

// Reads the memory, shape and type of plain tensors. Of a subclass it knows nothing: that may keep its data elsewhere.
class TensorReader {
 public:
  // tensor_type is torch.Tensor. Throws std::invalid_argument if this torch does not offer the functions.
  explicit TensorReader(const py::object& tensor_type, const TensorLook& look = {})
      : type_(tensor_type), is_neg_(tensor_type.attr("is_neg")), look_(look) {
    if (!py::hasattr(tensor_type, "__dlpack_c_exchange_api__")) {
      throw std::invalid_argument("this torch has no torch.Tensor.__dlpack_c_exchange_api__");
    }
    capsule_ = tensor_type.attr("__dlpack_c_exchange_api__");
    void* const pointer = PyCapsule_GetPointer(capsule_.ptr(), "dlpack_exchange_api");
    if (pointer == nullptr) throw py::error_already_set();
    const DLPackExchangeAPI* api = static_cast<const DLPackExchangeAPI*>(pointer);
    if (api->header.version.major != DLPACK_MAJOR_VERSION || api->dltensor_from_py_object_no_sync == nullptr) {
      throw std::invalid_argument("this torch has another version of DLPack");
    }
    read_ = api->dltensor_from_py_object_no_sync;
  }

  bool is_plain(PyObject* x) const { return reinterpret_cast<PyObject*>(Py_TYPE(x)) == type_.ptr(); }

  // Whether torch negates the elements when it reads them.
  bool is_negated(PyObject* x) const {
    const py::object answer = py::reinterpret_steal<py::object>(PyObject_CallOneArg(is_neg_.ptr(), x));
    if (!answer) throw py::error_already_set();
    return answer.ptr() == Py_True;
  }

  // Whether a tensor of some elements has none in memory: of a storage that was freed, as by resize_(0), only the
  // tensor's offset is left of the address. Torch is asked only where an address could be one.
  bool is_freed(PyObject* x, const void* data) const {
    constexpr uintptr_t kNoAllocator = uintptr_t{1} << 40;
    const uintptr_t address = reinterpret_cast<uintptr_t>(data);
    if (address == 0 || address >= kNoAllocator) return address == 0;
    const py::handle tensor(x);
    return address == tensor.attr("storage_offset")().cast<uintptr_t>() * tensor.attr("itemsize").cast<uintptr_t>();
  }

  // False if the tensor cannot be described (it is sparse, say). What is described is borrowed from the tensor.
  bool read(PyObject* x, DLTensor& to) const {
    if (read_(x, &to) == 0) return true;
    PyErr_Clear();  // whoever asks has another way to handle such a tensor, and says what is wrong if not
    return false;
  }

  // The same, to be compared with what is seen later. Of what is no tensor, nothing may be asked: it must be known to
  // be torch.Tensor or torch.nn.Parameter, as memory is read where these have it.
  bool look(PyObject* x, Sight& to) const {
    if (look_.look != nullptr) return look_.look(reinterpret_cast<const char*>(x) + look_.offset, &to) != 0;
    DLTensor seen;
    if (!read(x, seen)) return false;
    const int32_t dtype = seen.dtype.lanes << 16 | seen.dtype.bits << 8 | seen.dtype.code;
    to = {data_of(seen),        seen.shape, seen.strides, seen.ndim, dtype, int32_t(seen.device.device_type),
          seen.device.device_id};
    return true;
  }

 private:
  py::object type_, is_neg_, capsule_;
  TensorLook look_;
  DLPackDLTensorFromPyObjectNoSync read_ = nullptr;
};

inline int64_t numel_of(const DLTensor& x) {
  int64_t n = 1;
  for (int32_t d = 0; d < x.ndim; ++d) n *= x.shape[d];
  return n;
}

inline std::optional<DType> float_type(const DLDataType& t) {
  if (t.lanes != 1) return std::nullopt;
  if (t.code == kDLFloat && t.bits == 32) return DType::kFloat;
  if (t.code == kDLFloat && t.bits == 64) return DType::kDouble;
  if (t.code == kDLFloat && t.bits == 16) return DType::kHalf;
  if (t.code == kDLBfloat && t.bits == 16) return DType::kBFloat16;
  return std::nullopt;
}

inline bool is_host(const DLDevice& x) { return x.device_type == kDLCPU; }

// Whether it is what torch calls "cuda", which in a torch for ROCm are AMD's.
inline bool is_cuda(const DLDevice& x) { return x.device_type == kDLCUDA || x.device_type == kDLROCM; }

inline bool same_device(const DLDevice& a, const DLDevice& b) {
  return a.device_type == b.device_type && a.device_id == b.device_id;
}

// Whether two tensors have the same shape and their elements in the same order of memory.
inline bool same_layout(const DLTensor& a, const DLTensor& b) {
  const size_t bytes = size_t(a.ndim) * sizeof(int64_t);
  if (a.ndim != b.ndim || (bytes > 0 && std::memcmp(a.shape, b.shape, bytes) != 0)) return false;
  if (bytes == 0 || std::memcmp(a.strides, b.strides, bytes) == 0 || numel_of(a) < 2) return true;
  for (int32_t d = 0; d < a.ndim; ++d) {
    if (a.shape[d] != 1 && a.strides[d] != b.strides[d]) return false;
  }
  return true;
}

// Whether the elements fill one block of memory, in any order of dimensions.
inline bool is_dense(const DLTensor& x) {
  if (numel_of(x) < 2) return true;
  std::vector<std::pair<int64_t, int64_t>> dims;  // stride, size
  for (int32_t d = 0; d < x.ndim; ++d) {
    if (x.shape[d] > 1) dims.emplace_back(x.strides[d], x.shape[d]);
  }
  std::sort(dims.begin(), dims.end());
  int64_t extent = 1;
  for (const auto& [stride, size] : dims) {
    if (stride != extent) return false;
    extent *= size;
  }
  return true;
}

}  // namespace ft
