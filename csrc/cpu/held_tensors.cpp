#include "cpu/held_tensors.h"

#include <algorithm>
#include <memory>

#include "plan/prefetch.h"

namespace ft {

// Straight to the C functions, and no exception: a tensor that cannot be described has changed.
bool HeldTensors::look(AtenTensorHandle x, Seen& seen, const int64_t*& shape, const int64_t*& strides) {
  int64_t* sizes = nullptr;
  int64_t* steps = nullptr;
  const bool failed = aoti_torch_get_data_ptr(x, &seen.data) || aoti_torch_get_dim(x, &seen.dims) ||
                      aoti_torch_get_sizes(x, &sizes) || aoti_torch_get_strides(x, &steps) ||
                      aoti_torch_get_dtype(x, &seen.dtype);
  shape = sizes;
  strides = steps;
  return !failed;
}

HeldTensors::HeldTensors(const TensorList& tensors) : tensors_(tensors) {
  seen_.reserve(tensors.size());
  for (size_t i = 0; i < tensors.size(); ++i) {
    Seen seen;
    const int64_t *shape, *strides;
    require(look(tensors[i].get(), seen, shape, strides), "hold_tensors", "tensors[", i,
            "] is not dense memory; pass strided tensors");
    seen.sizes = shape;
    seen.extents = extents_.size();
    extents_.insert(extents_.end(), shape, shape + seen.dims);
    extents_.insert(extents_.end(), strides, strides + seen.dims);
    seen_.push_back(seen);
  }
}

bool HeldTensors::unchanged() const {
  for (size_t i = 0; i < seen_.size(); ++i) {
    const Seen& known = seen_[i];
    prefetch_around(seen_[std::min(i + kAhead, seen_.size() - 1)].sizes);
    Seen seen;
    const int64_t *shape, *strides;
    if (!look(tensors_[i].get(), seen, shape, strides) || seen.data != known.data || seen.dims != known.dims ||
        seen.dtype != known.dtype) {
      return false;
    }
    const int64_t* extents = extents_.data() + known.extents;
    for (int64_t d = 0; d < seen.dims; ++d) {  // one or two of them: too few for std::equal, which calls memcmp
      if (shape[d] != extents[d] || strides[d] != extents[seen.dims + d]) return false;
    }
  }
  return true;
}

int64_t hold_tensors(const TensorList& tensors) {
  return int64_t(reinterpret_cast<uintptr_t>(std::make_unique<HeldTensors>(tensors).release()));
}

}  // namespace ft

int ft_held_unchanged(const ft::HeldTensors* held) { return held->unchanged() ? 1 : 0; }

void ft_release_tensors(ft::HeldTensors* held) { delete held; }
