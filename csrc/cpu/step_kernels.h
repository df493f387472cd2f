// The table of inner loops of the norm and of the optimizer step, one table per instruction set. Each loop makes one
// pass over one run of elements; chunks, dtypes of storage and threads are the business of the callers.
#pragma once
#include <cstdint>

#include "cpu/dtype.h"
#include "cpu/isa.h"
#include "plan/step_table.h"
#include "rules/updates.h"

namespace ft {

template <class... Rules>
constexpr int length(TypeList<Rules...>) {
  return sizeof...(Rules);
}
constexpr int kUpdates = length(Updates{});

template <class... Rules>
constexpr bool states_fit(TypeList<Rules...>) {
  return ((Rules::kStates <= kMaxStates) && ...);
}
static_assert(states_fit(Updates{}), "the table holds kMaxStates states of a tensor");

// C, the type of the arithmetic, is float, or double for tensors of doubles.
template <class C>
struct StepKernels {
  // p -= lr u over n elements; prepared is a Prepared<Rule, C>.
  void (*update[kUpdates])(const void* prepared, C* p, const C* g, C* const* states, int64_t n);

  void (*load[kDTypes])(const void* x, C* y, int64_t n);
  void (*store[kDTypes])(const C* x, void* y, int64_t n);  // rounds once
  void (*scale)(const C* x, C factor, C* y, int64_t n);

  // Sums in double, in an order of their own that depends on n alone.
  double (*sum_squares)(const C* x, int64_t n);
  double (*sum_scaled_squares)(const C* x, double factor, int64_t n);
  double (*sum_magnitudes)(const C* x, int64_t n);
  double (*sum_powers)(const C* x, int exponent, double p, int64_t n);  // of |x| 2^-exponent
  double (*max_magnitude)(const C* x, int64_t n);                       // NaN if any element is
};

struct StepKernelSet {
  StepKernels<float> single;
  StepKernels<double> twice;
};

namespace isa_baseline {
extern const StepKernelSet kStepKernels;
}
#if defined(__x86_64__)
namespace isa_avx2 {
extern const StepKernelSet kStepKernels;
}
namespace isa_avx512 {
extern const StepKernelSet kStepKernels;
}
#endif

inline const StepKernelSet& step_kernel_set() {
#if defined(__x86_64__)
  switch (isa()) {
    case Isa::kAvx512:
      return isa_avx512::kStepKernels;
    case Isa::kAvx2:
      return isa_avx2::kStepKernels;
    case Isa::kBaseline:
      break;
  }
#endif
  return isa_baseline::kStepKernels;
}

template <class C>
const StepKernels<C>& step_kernels();
template <>
inline const StepKernels<float>& step_kernels<float>() {
  return step_kernel_set().single;
}
template <>
inline const StepKernels<double>& step_kernels<double>() {
  return step_kernel_set().twice;
}

}  // namespace ft
