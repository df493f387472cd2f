#include "args/args.h"

namespace ft {

using torch::headeronly::ScalarType;

std::string shape_of(const Tensor& x) {
  std::string text = "(";
  for (int64_t d = 0; d < x.dim(); ++d) text += (d > 0 ? ", " : "") + std::to_string(x.size(d));
  return text + (x.dim() == 1 ? ",)" : ")");
}

std::string dtype_name(const Tensor& x) { return torch::headeronly::toString(x.scalar_type()); }

std::optional<DType> float_type_here(const Tensor& x) {
  if (!is_here(x)) return std::nullopt;
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return DType::kFloat;
    case ScalarType::Double:
      return DType::kDouble;
    case ScalarType::Half:
      return DType::kHalf;
    case ScalarType::BFloat16:
      return DType::kBFloat16;
    default:
      return std::nullopt;
  }
}

DType check_tensor(const char* op, const char* name, const Tensor& x) {
  const std::optional<DType> type = float_type_here(x);
  if (!type) {
    require(is_here(x), op, name, " is not ", kHere, "; move it to the device of the other arguments");
    require(false, op, name, " has dtype ", dtype_name(x), "; it must be float32, float64, float16 or bfloat16");
  }
  check_memory(op, name, x);
  return *type;
}

bool has_memory(const Tensor& x) {
  const uintptr_t offset = uintptr_t(x.storage_offset()) * x.element_size();
  return x.numel() == 0 || reinterpret_cast<uintptr_t>(x.const_data_ptr()) != offset;
}

void check_memory(const char* op, const char* name, const Tensor& x) {
  require(has_memory(x), op, name, " has no memory: its storage was freed, as by resize_(0); allocate it again");
}

void check_same_device(const char* op, const char* name, const Tensor& x, const char* like_name, const Tensor& like) {
  const int32_t index = x.get_device_index(), wanted = like.get_device_index();
  require(index == wanted, op, name, " is on device ", index, ", ", like_name, " on device ", wanted,
          "; move it to the device of the other arguments");
}

void check_same_shape(const char* op, const char* name, const Tensor& x, const char* like_name, const Tensor& like) {
  bool same = x.dim() == like.dim();
  for (int64_t d = 0; same && d < x.dim(); ++d) same = x.size(d) == like.size(d);
  require(same, op, name, " has shape ", shape_of(x), "; it must have that of ", like_name, ", ", shape_of(like));
}

bool may_overlap(const Tensor& a, const Tensor& b) {
  if (a.numel() == 0 || b.numel() == 0) return false;
  const auto range = [](const Tensor& x) {
    int64_t last = 0;
    for (int64_t d = 0; d < x.dim(); ++d) last += (x.size(d) - 1) * x.stride(d);
    const char* first = static_cast<const char*>(x.const_data_ptr());
    return std::make_pair(first, first + (last + 1) * int64_t(x.element_size()));
  };
  const auto [a_begin, a_end] = range(a);
  const auto [b_begin, b_end] = range(b);
  return a_begin < b_end && b_begin < a_end;
}

}  // namespace ft
