// The loops of act_kernels.h for one instruction set: FT_ISA names it. Plain loops: the compiler vectorises them.
// No include guard: it is included once per instruction set.
#include "cpu/isa_begin.h"

#include "cpu/convert.h"
#include "cpu/philox_simd.h"

namespace ft {
namespace FT_ISA {

// Calls f(i) for i below n, a multiple of kStep. The two levels tell the compiler that there is no remainder.
template <class F>
inline __attribute__((always_inline)) void for_each(int64_t n, F&& f) {
  for (int64_t start = 0; start < n; start += kStep) {
    for (int64_t i = start; i < start + kStep; ++i) f(i);
  }
}

template <class Rule, class C>
void fwd(const C* __restrict x, const C* __restrict bias, C* __restrict y, int64_t n) {
  if (bias != nullptr) {
    for_each(n, [=](int64_t i) __attribute__((always_inline)) { y[i] = Rule::fwd(x[i] + bias[i]); });
  } else {
    for_each(n, [=](int64_t i) __attribute__((always_inline)) { y[i] = Rule::fwd(x[i]); });
  }
}

template <class Rule, class C>
void grad(const C* __restrict x, const C* __restrict bias, C* __restrict slope, int64_t n) {
  if (bias != nullptr) {
    for_each(n, [=](int64_t i) __attribute__((always_inline)) { slope[i] = Rule::grad(x[i] + bias[i]); });
  } else {
    for_each(n, [=](int64_t i) __attribute__((always_inline)) { slope[i] = Rule::grad(x[i]); });
  }
}

template <class Rule, class C>
void fwd_and_grad(const C* __restrict x, const C* __restrict bias, C* __restrict a, C* __restrict slope, int64_t n) {
  const auto both = [=](int64_t i, C z) __attribute__((always_inline)) {
    a[i] = Rule::fwd(z);
    slope[i] = Rule::grad(z);
  };
  if (bias != nullptr) {
    for_each(n, [=](int64_t i) __attribute__((always_inline)) { both(i, x[i] + bias[i]); });
  } else {
    for_each(n, [=](int64_t i) __attribute__((always_inline)) { both(i, x[i]); });
  }
}

template <class Rule, class C>
void grad_from_output(const C* __restrict y, C inverse_scale, C* __restrict slope, int64_t n) {
  for_each(n,
           [=](int64_t i) __attribute__((always_inline)) { slope[i] = Rule::grad_from_output(y[i] * inverse_scale); });
}

// An unsigned integer of the width of C, so that a comparison of lanes makes a mask for values.
template <class C>
struct Word;
template <>
struct Word<float> {
  using type = int32_t;
};
template <>
struct Word<double> {
  using type = int64_t;
};

template <class C>
FT_HD bool is_kept(uint16_t lane, Drop<C> drop) {
  using W = typename Word<C>::type;
  return W(lane) >= W(drop.threshold);
}

template <bool kDrop, bool kResidual, bool kMark, class C>
void dropout_as(const C* __restrict a, const uint16_t* __restrict lanes, Drop<C> drop, const C* __restrict residual,
                C* __restrict y, int64_t n) {
  for_each(n, [=](int64_t i) __attribute__((always_inline)) {
    C v = a[i];
    if (kDrop) {
      v *= drop.scale;
      if (kMark) v = v == C(0) ? C(-0.0) : v;
      v = is_kept(lanes[i], drop) ? v : C(0);
    }
    if (kResidual) v += residual[i];
    y[i] = v;
  });
}

template <class C>
void dropout(const C* a, const uint16_t* lanes, Drop<C> drop, const C* residual, bool mark, C* y, int64_t n) {
  if (lanes == nullptr) {
    residual == nullptr ? dropout_as<false, false, false>(a, lanes, drop, residual, y, n)
                        : dropout_as<false, true, false>(a, lanes, drop, residual, y, n);
  } else if (residual != nullptr) {
    dropout_as<true, true, false>(a, lanes, drop, residual, y, n);
  } else {
    mark ? dropout_as<true, false, true>(a, lanes, drop, residual, y, n)
         : dropout_as<true, false, false>(a, lanes, drop, residual, y, n);
  }
}

template <class C>
void gradient(const C* __restrict dy, const C* __restrict slope, const uint16_t* __restrict lanes, Drop<C> drop,
              C* __restrict dx, int64_t n) {
  if (lanes == nullptr) {
    for_each(n, [=](int64_t i) __attribute__((always_inline)) { dx[i] = dy[i] * slope[i]; });
  } else {
    for_each(n, [=](int64_t i) __attribute__((always_inline)) {
      const C d = dy[i] * slope[i] * drop.scale;
      dx[i] = is_kept(lanes[i], drop) ? d : C(0);
    });
  }
}

template <class C>
void gradient_from_output(const C* __restrict dy, const C* __restrict slope, const C* __restrict y, C scale,
                          C* __restrict dx, int64_t n) {
  for_each(n, [=](int64_t i) __attribute__((always_inline)) {
    typename Word<C>::type bits;
    std::memcpy(&bits, y + i, sizeof bits);
    const C d = dy[i] * slope[i] * scale;
    dx[i] = bits != 0 ? d : C(0);
  });
}

template <class C>
void add(const C* __restrict a, const C* __restrict b, C* __restrict sum, int64_t n) {
  for_each(n, [=](int64_t i) __attribute__((always_inline)) { sum[i] = a[i] + b[i]; });
}

template <class C>
void accumulate(const C* __restrict x, C* __restrict sum, int64_t n) {
  for (int64_t i = 0; i < n; ++i) sum[i] += x[i];
}

template <class C>
void multiply(const C* __restrict x, C* __restrict product, int64_t n) {
  for_each(n, [=](int64_t i) __attribute__((always_inline)) { product[i] *= x[i]; });
}

// In 16 bits throughout, to be vectorised at full width.
inline void mark_kept_zeros(const uint16_t* __restrict lanes, uint32_t threshold, uint16_t* __restrict y, int64_t n) {
  if (threshold > 0xffff) return;  // none is kept
  const uint16_t first_kept = uint16_t(threshold);
  for (int64_t i = 0; i < n; ++i) {
    const uint16_t kept = lanes[i] >= first_kept ? 0x8000 : 0, zero = y[i] == 0 ? 0x8000 : 0;
    y[i] = uint16_t(y[i] | (kept & zero));
  }
}

template <class T, class C>
void load(const void* x, C* y, int64_t n) {
  convert(static_cast<const T*>(x), y, n);
}

template <class T, class C>
void store(const C* x, const uint16_t* lanes, Drop<C> drop, bool mark, void* y, int64_t n) {
  convert(x, static_cast<T*>(y), n);
  if (sizeof(T) == 2 && mark) mark_kept_zeros(lanes, drop.threshold, static_cast<uint16_t*>(y), n);
}

template <class C, class Rule>
constexpr auto grad_from_output_of() -> void (*)(const C*, C, C*, int64_t) {
  if constexpr (Rule::kSaves == Saves::kInput) {
    return nullptr;
  } else {
    return &grad_from_output<Rule, C>;
  }
}

template <class... Rules>
constexpr ActKernels<float> single(TypeList<Rules...>) {
  return {{&fwd<Rules, float>...},
          {&grad<Rules, float>...},
          {&fwd_and_grad<Rules, float>...},
          {grad_from_output_of<float, Rules>()...},
          &dropout<float>,
          &gradient<float>,
          &gradient_from_output<float>,
          &add<float>,
          &accumulate<float>,
          &multiply<float>,
          {&load<float, float>, &load<double, float>, &load<Half, float>, &load<BFloat16, float>},
          {&store<float, float>, nullptr, &store<Half, float>, &store<BFloat16, float>}};
}

template <class... Rules>
constexpr ActKernels<double> twice(TypeList<Rules...>) {
  return {{&fwd<Rules, double>...},
          {&grad<Rules, double>...},
          {&fwd_and_grad<Rules, double>...},
          {grad_from_output_of<double, Rules>()...},
          &dropout<double>,
          &gradient<double>,
          &gradient_from_output<double>,
          &add<double>,
          &accumulate<double>,
          &multiply<double>,
          {&load<float, double>, &load<double, double>, &load<Half, double>, &load<BFloat16, double>},
          {nullptr, &store<double, double>, nullptr, nullptr}};
}

extern const Kernels kKernels = {&fill_lanes, single(Activations{}), twice(Activations{})};
static_assert(8 * kPairs <= kLanesExtra);

}  // namespace FT_ISA
}  // namespace ft

#include "cpu/isa_end.h"
