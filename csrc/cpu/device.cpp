// The operators of this library work on tensors of the CPU.
#include "args/device.h"

#include <algorithm>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace ft {
namespace {

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

bool is_here(const Tensor& x) { return x.is_cpu(); }
const char* const kHere = "on the CPU";

// Straight to the allocator: by way of the dispatcher it costs microseconds.
Tensor empty(const std::vector<int64_t>& shape, int32_t dtype, const Tensor&) {
  std::vector<int64_t> strides(shape.size());
  int64_t stride = 1;
  for (size_t d = shape.size(); d-- > 0;) {
    strides[d] = stride;
    stride *= std::max<int64_t>(shape[d], 1);
  }
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(int64_t(shape.size()), shape.data(), strides.data(), dtype,
                                                  aoti_torch_device_type_cpu(), 0, &handle));
  Tensor y(handle);
  advise_huge_pages(y);
  return y;
}

// Torch's own words, as far as it gives them.
void failed_to_allocate(int64_t, int32_t) { throw; }

}  // namespace ft
