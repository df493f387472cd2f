// The loops of step_kernels.h for one instruction set: FT_ISA names it.
// No include guard: it is included once per instruction set.
#include "cpu/isa_begin.h"

#include "cpu/convert.h"

// Elements of different operands never depend on one another: callers have checked that what is written does not
// overlap.
#if defined(__clang__)
#define FT_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define FT_INDEPENDENT _Pragma("GCC ivdep")
#endif

namespace ft {
namespace FT_ISA {

template <class Rule, class C>
void update(const void* prepared, C* p, const C* g, C* const* states, int64_t n) {
  constexpr int kStates = Rule::kStates;
  const Prepared<Rule, C> row = *static_cast<const Prepared<Rule, C>*>(prepared);
  C* const s0 = kStates > 0 ? states[0] : nullptr;
  C* const s1 = kStates > 1 ? states[1] : nullptr;
  C* const s2 = kStates > 2 ? states[2] : nullptr;
  FT_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) {
    C s[kMaxStates];
    if (kStates > 0) s[0] = s0[i];
    if (kStates > 1) s[1] = s1[i];
    if (kStates > 2) s[2] = s2[i];
    p[i] = row(p[i], g[i], s);
    if (kStates > 0) s0[i] = s[0];
    if (kStates > 1) s1[i] = s[1];
    if (kStates > 2) s2[i] = s[2];
  }
}

template <class T, class C>
void load(const void* x, C* y, int64_t n) {
  convert(static_cast<const T*>(x), y, n);
}

template <class T, class C>
void store(const C* x, void* y, int64_t n) {
  convert(x, static_cast<T*>(y), n);
}

// A double that goes by float to a smaller type must not be rounded twice: rounded to odd the first time, it keeps the
// second rounding from seeing a tie or a value that was none.
inline float round_to_odd(double x) {
  const float nearest = float(x);
  if (double(nearest) == x || x != x) return nearest;
  const int32_t toward_zero = host::bits(nearest) - (::fabs(double(nearest)) > ::fabs(x) ? 1 : 0);
  return host::from_bits(toward_zero | 1);
}

template <class T>
void store_by_float(const double* x, void* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const float odd = round_to_odd(x[i]);
    convert(&odd, static_cast<T*>(y) + i, 1);
  }
}

template <class C>
void scale(const C* x, C factor, C* y, int64_t n) {
  FT_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) y[i] = x[i] * factor;
}

// Four doubles: the unit in which the lanes of a sum are kept, whatever the width of the machine's vectors.
typedef double Doubles __attribute__((vector_size(32)));

// By reference: how such vectors are passed by value depends on the instruction set.
inline void load_four(const float* x, Doubles& v) {
#if FT_ISA_LEVEL > 1
  v = _mm256_cvtps_pd(_mm_loadu_ps(x));
#else
  for (int i = 0; i < 4; ++i) v[i] = double(x[i]);
#endif
}
inline void load_four(const double* x, Doubles& v) { std::memcpy(&v, x, sizeof v); }

// Adds f of four elements to four lanes.
template <class C, class F>
inline __attribute__((always_inline)) void add_four(const C* x, Doubles& a, F&& f) {
  Doubles v;
  load_four(x, v);
  f(v);
  a += v;
}

// The sum of f over x; f replaces four values, and zeros by zeros.
template <class C, class F>
inline __attribute__((always_inline)) double sum(const C* x, int64_t n, F&& f) {
  Doubles a[8] = {};
  int64_t i = 0;
  for (; i + 32 <= n; i += 32) {  // lanes enough to hide the latency of an addition
    for (int j = 0; j < 8; ++j) add_four(x + i + 4 * j, a[j], f);
  }
  Doubles tail = {};
  for (; i + 4 <= n; i += 4) add_four(x + i, tail, f);
  if (i < n) {
    C rest[4] = {};
    std::memcpy(rest, x + i, size_t(n - i) * sizeof(C));
    add_four(rest, tail, f);
  }
  const Doubles total = (((a[0] + a[1]) + (a[2] + a[3])) + ((a[4] + a[5]) + (a[6] + a[7]))) + tail;
  return (total[0] + total[1]) + (total[2] + total[3]);
}

template <class C>
double sum_squares(const C* x, int64_t n) {
  return sum(x, n, [](Doubles& v) __attribute__((always_inline)) { v *= v; });
}

template <class C>
double sum_scaled_squares(const C* x, double factor, int64_t n) {
  return sum(x, n, [=](Doubles& v) __attribute__((always_inline)) {
    v *= factor;
    v *= v;
  });
}

template <class C>
double sum_magnitudes(const C* x, int64_t n) {
  return sum(x, n, [](Doubles& v) __attribute__((always_inline)) { v = v < 0.0 ? -v : v; });
}

template <class C>
double sum_powers(const C* x, int exponent, double p, int64_t n) {
  double total = 0;
  for (int64_t i = 0; i < n; ++i) total += ::pow(::ldexp(::fabs(double(x[i])), -exponent), p);
  return total;
}

template <class C>
struct Magnitude;
template <>
struct Magnitude<float> {
  using Bits = int32_t;
  static constexpr Bits kMask = 0x7fffffff;
};
template <>
struct Magnitude<double> {
  using Bits = int64_t;
  static constexpr Bits kMask = 0x7fffffffffffffff;
};

// Without their signs, floating-point numbers are ordered as their bits are, NaN above infinity.
template <class C>
double max_magnitude(const C* x, int64_t n) {
  using Bits = typename Magnitude<C>::Bits;
  Bits largest = 0;
  for (int64_t i = 0; i < n; ++i) {
    Bits b;
    std::memcpy(&b, x + i, sizeof b);
    b &= Magnitude<C>::kMask;
    largest = b > largest ? b : largest;
  }
  C value;
  std::memcpy(&value, &largest, sizeof value);
  return double(value);
}

template <class C, class... Rules>
constexpr StepKernels<C> step_kernels_of(TypeList<Rules...>) {
  if constexpr (sizeof(C) == sizeof(float)) {
    return {{&update<Rules, C>...},
            {&load<float, C>, &load<double, C>, &load<Half, C>, &load<BFloat16, C>},
            {&store<float, C>, &store<double, C>, &store<Half, C>, &store<BFloat16, C>},
            &scale<C>,
            &sum_squares<C>,
            &sum_scaled_squares<C>,
            &sum_magnitudes<C>,
            &sum_powers<C>,
            &max_magnitude<C>};
  } else {
    return {{&update<Rules, C>...},
            {&load<float, C>, &load<double, C>, &load<Half, C>, &load<BFloat16, C>},
            {&store<float, C>, &store<double, C>, &store_by_float<Half>, &store_by_float<BFloat16>},
            &scale<C>,
            &sum_squares<C>,
            &sum_scaled_squares<C>,
            &sum_magnitudes<C>,
            &sum_powers<C>,
            &max_magnitude<C>};
  }
}

extern const StepKernelSet kStepKernels = {step_kernels_of<float>(Updates{}), step_kernels_of<double>(Updates{})};

}  // namespace FT_ISA
}  // namespace ft

#undef FT_INDEPENDENT

#include "cpu/isa_end.h"
