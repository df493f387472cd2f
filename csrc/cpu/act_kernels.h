// The table of inner loops of activation + dropout, one table per instruction set; arrays do not overlap. Each loop
// makes one pass over a block that stays in the first-level cache; blocks, memory and threads are the business of the
// callers.
#pragma once
#include <cstdint>

#include "cpu/dtype.h"
#include "cpu/isa.h"
#include "rules/activations.h"

namespace ft {

// Loops of arithmetic take a multiple of kStep elements, so that every element goes through the same instructions and
// its value does not depend on where a block ends.
constexpr int64_t kStep = 64;
constexpr int64_t kBlock = 1024;
static_assert(kBlock % kStep == 0);

constexpr int64_t round_up_to_step(int64_t n) { return (n + kStep - 1) / kStep * kStep; }

template <class... Rules>
constexpr int count(TypeList<Rules...>) {
  return sizeof...(Rules);
}
constexpr int kActivations = count(Activations{});

// What dropout does to an element: kept iff its lane is at least the threshold, and then scaled.
template <class C>
struct Drop {
  uint32_t threshold;
  C scale;
};

// C, the type of the arithmetic, is float, or double for tensors of doubles.
template <class C>
struct ActKernels {
  using Map = void (*)(const C* x, const C* bias, C* y, int64_t n);  // bias may be null
  using MapBoth = void (*)(const C* x, const C* bias, C* a, C* slope, int64_t n);

  Map fwd[kActivations];
  Map grad[kActivations];
  MapBoth fwd_and_grad[kActivations];
  // slope from y = scale fwd(x); null where the output does not determine it
  void (*grad_from_output[kActivations])(const C* y, C inverse_scale, C* slope, int64_t n);

  // y = (kept ? a scale : 0) + residual; lanes and residual may be null. A kept zero becomes -0.0 if `mark`.
  void (*dropout)(const C* a, const uint16_t* lanes, Drop<C> drop, const C* residual, bool mark, C* y, int64_t n);
  // dx = kept ? dy slope scale : 0; lanes may be null
  void (*gradient)(const C* dy, const C* slope, const uint16_t* lanes, Drop<C> drop, C* dx, int64_t n);
  // the same with the mask taken from y, whose dropped elements, and no others, are +0.0
  void (*gradient_from_output)(const C* dy, const C* slope, const C* y, C scale, C* dx, int64_t n);

  void (*add)(const C* a, const C* b, C* sum, int64_t n);
  void (*accumulate)(const C* x, C* sum, int64_t n);    // sum += x; n is arbitrary
  void (*multiply)(const C* x, C* product, int64_t n);  // product *= x

  void (*load[kDTypes])(const void* x, C* y, int64_t n);  // n is arbitrary
  // Rounds once. A kept element that is rounded to zero becomes -0.0 if `mark`; lanes as in dropout.
  void (*store[kDTypes])(const C* x, const uint16_t* lanes, Drop<C> drop, bool mark, void* y, int64_t n);
};

struct Kernels {
  void (*fill_lanes)(int64_t seed, int64_t offset, int64_t chunk, uint16_t* lanes, int64_t n);
  ActKernels<float> single;
  ActKernels<double> twice;
};

// fill_lanes writes up to this many lanes more than it is asked for.
constexpr int64_t kLanesExtra = 64;

namespace isa_baseline {
extern const Kernels kKernels;
}
#if defined(__x86_64__)
namespace isa_avx2 {
extern const Kernels kKernels;
}
namespace isa_avx512 {
extern const Kernels kKernels;
}
#endif

inline const Kernels& kernels() {
#if defined(__x86_64__)
  switch (isa()) {
    case Isa::kAvx512:
      return isa_avx512::kKernels;
    case Isa::kAvx2:
      return isa_avx2::kKernels;
    case Isa::kBaseline:
      break;
  }
#endif
  return isa_baseline::kKernels;
}

template <class C>
const ActKernels<C>& act_kernels();
template <>
inline const ActKernels<float>& act_kernels<float>() {
  return kernels().single;
}
template <>
inline const ActKernels<double>& act_kernels<double>() {
  return kernels().twice;
}

}  // namespace ft
