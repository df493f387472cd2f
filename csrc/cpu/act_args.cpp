#include "cpu/act_args.h"

#include <algorithm>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace ft {
namespace {

using torch::headeronly::ScalarType;

template <class... Rules>
int position(const std::string& name, TypeList<Rules...>) {
  int index = 0, found = -1;
  ((found = name == Rules::kName ? index : found, ++index), ...);
  return found;
}

// A large output is fresh memory from the system, and touching it page by page takes longer than all the arithmetic: of
// 2 MiB each, the pages are few. Where the system does not do so, nothing happens.
void advise_huge_pages(const Tensor& y) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kHugePage = uintptr_t(2) << 20;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(y.const_data_ptr());
  const uintptr_t end = begin + uintptr_t(y.numel()) * y.element_size();
  const uintptr_t first = (begin + kHugePage - 1) / kHugePage * kHugePage, last = end / kHugePage * kHugePage;
  if (last >= first + 2 * kHugePage) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
  (void)y;
#endif
}

}  // namespace

std::string shape_of(const Tensor& x) {
  std::string text = "(";
  for (int64_t d = 0; d < x.dim(); ++d) text += (d > 0 ? ", " : "") + std::to_string(x.size(d));
  return text + (x.dim() == 1 ? ",)" : ")");
}

DType check_tensor(const char* op, const char* name, const Tensor& x) {
  require(x.is_cpu(), op, name, " is not on the CPU; move it to the device of the other arguments");
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
      require(false, op, name, " has dtype ", torch::headeronly::toString(x.scalar_type()),
              "; it must be float32, float64, float16 or bfloat16");
  }
  return DType::kFloat;
}

void check_same_shape(const char* op, const char* name, const Tensor& x, const char* like_name, const Tensor& like) {
  bool same = x.dim() == like.dim();
  for (int64_t d = 0; same && d < x.dim(); ++d) same = x.size(d) == like.size(d);
  require(same, op, name, " has shape ", shape_of(x), "; it must have that of ", like_name, ", ", shape_of(like));
}

void check_bias(const char* op, const OptionalTensor& bias, int64_t width) {
  if (!bias) return;
  check_tensor(op, "bias", *bias);
  require(bias->dim() == 1 && bias->size(0) == width, op, "bias has shape ", shape_of(*bias), "; it must be (", width,
          ",), the last dimension of x");
}

Tensor empty(const std::vector<int64_t>& shape, int32_t dtype) {
  std::vector<int64_t> strides(shape.size());
  int64_t stride = 1;
  for (size_t d = shape.size(); d-- > 0;) {
    strides[d] = stride;
    stride *= std::max<int64_t>(shape[d], 1);
  }
  AtenTensorHandle handle = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(int64_t(shape.size()), shape.data(), strides.data(), dtype,
                                                         aoti_torch_device_type_cpu(), 0, &handle));
  Tensor y(handle);
  advise_huge_pages(y);
  return y;
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

int check_activation(const char* op, const std::string& activation) {
  const int index = position(activation, Activations{});
  require(index >= 0, op, "unknown activation '", activation, "'; choose one of ", names(Activations{}));
  return index;
}

Dropout check_dropout(const char* op, const OptionalTensor& rng_state, int64_t threshold, bool needs_lanes) {
  require(threshold >= 0 && threshold <= 65536, op, "threshold is ", threshold,
          "; it must be round(65536 p), in [0, 65536]");
  Dropout dropout;
  dropout.threshold = uint32_t(threshold);
  if (rng_state) {
    require(rng_state->is_cpu(), op, "rng_state is not on the CPU; draw it on the device of x");
    require(rng_state->scalar_type() == ScalarType::Long && rng_state->dim() == 1 && rng_state->size(0) == 2, op,
            "rng_state has shape ", shape_of(*rng_state), " and dtype ",
            torch::headeronly::toString(rng_state->scalar_type()), "; it must be int64 (2,) = (seed, offset)");
    const int64_t* state = rng_state->const_data_ptr<int64_t>();
    dropout.seed = state[0];
    dropout.offset = state[rng_state->stride(0)];
  } else {
    require(!needs_lanes || threshold == 0, op, "rng_state is None but threshold is ", threshold,
            "; pass an int64 (2,) tensor (seed, offset), or threshold 0");
  }
  return dropout;
}

}  // namespace ft
