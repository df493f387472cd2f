#include "cpu/held_tensors.h"

#include <algorithm>
#include <cstring>
#include <memory>

#include "plan/prefetch.h"

namespace ft {

namespace {

// Straight to the C functions, and no exception: a tensor that cannot be described has changed.
bool look(AtenTensorHandle x, Sight& to) {
  int64_t* shape = nullptr;
  int64_t* strides = nullptr;
  const bool failed = aoti_torch_get_data_ptr(x, &to.data) || aoti_torch_get_dim(x, &to.dims) ||
                      aoti_torch_get_sizes(x, &shape) || aoti_torch_get_strides(x, &strides) ||
                      aoti_torch_get_dtype(x, &to.dtype);
  to.shape = shape;
  to.strides = strides;
  return !failed;
}

}  // namespace

HeldTensors::HeldTensors(const TensorList& tensors) : tensors_(tensors) {
  seen_.reserve(tensors.size());
  for (size_t i = 0; i < tensors.size(); ++i) {
    Sight seen = {};
    require(look(tensors[i].get(), seen), "hold_tensors", "tensors[", i, "] is not dense memory; pass strided tensors");
    seen_.push_back({seen, extents_.size()});
    extents_.insert(extents_.end(), seen.shape, seen.shape + seen.dims);
    extents_.insert(extents_.end(), seen.strides, seen.strides + seen.dims);
  }
}

uintptr_t HeldTensors::first_word() const {
  uintptr_t word;
  std::memcpy(&word, tensors_.at(0).get(), sizeof word);
  return word;
}

bool HeldTensors::unchanged() const {
  for (size_t i = 0; i < seen_.size(); ++i) {
    const Sight& then = seen_[i].sight;
    const size_t ahead = std::min(i + kAhead, seen_.size() - 1);
    prefetch_around(seen_[ahead].sight.shape);
    prefetch(tensors_[ahead].get());
    Sight now;
    if (!look(tensors_[i].get(), now) || now.data != then.data || now.dims != then.dims || now.dtype != then.dtype) {
      return false;
    }
    const int64_t* extents = extents_.data() + seen_[i].extents;
    for (int64_t d = 0; d < now.dims; ++d) {  // one or two of them: too few for std::equal, which calls memcmp
      if (now.shape[d] != extents[d] || now.strides[d] != extents[now.dims + d]) return false;
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

uintptr_t ft_first_word(const ft::HeldTensors* held) { return held->first_word(); }

int ft_look(const void* tensor, ft::Sight* to) {
  const auto x = static_cast<AtenTensorHandle>(const_cast<void*>(tensor));
  return ft::look(x, *to) && !aoti_torch_get_device_type(x, &to->device_type) &&
         !aoti_torch_get_device_index(x, &to->device_index);
}
