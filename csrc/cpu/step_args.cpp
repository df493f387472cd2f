#include "cpu/step_args.h"

#include <algorithm>

namespace ft {

using torch::headeronly::ScalarType;

DType check_item(const char* op, const char* list, int64_t i, const Tensor& x) {
  if (x.is_cpu()) {
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
        break;
    }
  }
  return check_tensor(op, item(list, i).c_str(), x);
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

ScalarRef check_scalar(const char* op, const char* name, const OptionalTensor& x) {
  if (!x) return {};
  const DType dtype = check_tensor(op, name, *x);
  require(x->numel() == 1, op, name, " has shape ", shape_of(*x), "; it must have one element");
  return {x->data_ptr(), dtype};
}

int64_t* check_counter(const char* op, const char* name, const OptionalTensor& x) {
  if (!x) return nullptr;
  require(x->is_cpu() && x->scalar_type() == ScalarType::Long && x->numel() == 1, op, name, " has shape ", shape_of(*x),
          " and dtype ", torch::headeronly::toString(x->scalar_type()), "; it must be one int64 on the CPU");
  return static_cast<int64_t*>(x->data_ptr());
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

}  // namespace ft
