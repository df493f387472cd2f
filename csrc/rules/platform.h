// What a rule is written in: the same scalar functions on the host and on the device, for float and double.
//
// On the device they are CUDA's. On the host those for float are polynomials without branches or calls, so that a loop
// over a rule vectorises in whatever instruction set the loop is compiled for; each is within a few units in the last
// place, NaN stays NaN, and overflow and, but for the normal distribution, gradual underflow are IEEE's. Coefficients
// are minimax fits (Lawson's reweighted least squares on Chebyshev nodes against 40-digit values); the error stated is
// that of the fit.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define FT_HD __host__ __device__ __forceinline__
#else
// Always inlined, so that a rule takes the instruction set of the kernel around it and vectorises there.
#define FT_HD inline __attribute__((always_inline))
#endif

namespace ft {

FT_HD float sqrt(float x) { return ::sqrtf(x); }
FT_HD double sqrt(double x) { return ::sqrt(x); }
FT_HD float abs(float x) { return ::fabsf(x); }
FT_HD double abs(double x) { return ::fabs(x); }

// -1, 0 or 1; NaN stays NaN, so that a poisoned value shows.
template <class T>
FT_HD T sign(T x) {
  const T positive = x > T(0) ? T(1) : x;
  return x < T(0) ? T(-1) : positive;
}

// As torch.maximum and torch.minimum: a NaN on either side wins.
template <class T>
FT_HD T maximum(T a, T b) {
  const T larger = a > b ? a : b;
  return a != a ? a : larger;
}
template <class T>
FT_HD T minimum(T a, T b) {
  const T smaller = a < b ? a : b;
  return a != a ? a : smaller;
}

namespace host {

FT_HD int32_t bits(float x) {
  int32_t b;
  std::memcpy(&b, &x, sizeof b);
  return b;
}

FT_HD float from_bits(int32_t b) {
  float x;
  std::memcpy(&x, &b, sizeof x);
  return x;
}

// 2^n for -128 < n < 129, where 2^-127 is 0 and 2^128 is inf.
FT_HD float power_of_two(int32_t n) { return from_bits((n + 127) << 23); }

// min(max(x, low), high) that keeps a NaN.
FT_HD float clamp(float x, float low, float high) {
  const float raised = x < low ? low : x;
  return raised > high ? high : raised;
}

// exp(x) = 2^n (1 + p), x = n ln 2 + r, |r| <= ln(2) / 2.
struct Reduced {
  float r;
  int32_t n;
};

FT_HD Reduced reduce(float x) {
  const float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, which the low bits then hold
  const float shifted = x * 1.44269504f + kRound;
  const float n = shifted - kRound;
  return {(x - n * 0.693359375f) - n * -2.12194440e-4f, bits(shifted) - bits(kRound)};  // ln 2 in two parts
}

// exp(r) - 1 for |r| <= ln(2) / 2, relative error 1.4e-8.
FT_HD float expm1_poly(float r) {
  float q = 0.00139475707f;
  q = q * r + 0.00836723391f;
  q = q * r + 0.0416662656f;
  q = q * r + 0.166665375f;
  q = q * r + 0.5f;
  return r + r * r * q;
}

// 2^n y, rounded once, also where the result is subnormal or overflows.
FT_HD float scale(float y, int32_t n) {
  const int32_t half = n >> 1;
  return y * power_of_two(half) * power_of_two(n - half);
}

FT_HD float exp(float x) {
  const Reduced a = reduce(clamp(x, -104.0f, 89.0f));  // beyond, the result is 0 or inf
  return scale(1.0f + expm1_poly(a.r), a.n);
}

FT_HD float expm1(float x) {
  const Reduced a = reduce(clamp(x, -30.0f, 89.0f));
  const float s = power_of_two(a.n - 1);
  return 2.0f * (s * expm1_poly(a.r) + (s - 0.5f));
}

// log(1 + u) = 2 atanh(u / (2 + u)) for 0 <= u <= 1, relative error 1.2e-10.
FT_HD float log1p_unit(float u) {
  const float z = u / (2.0f + u);
  const float w = z * z;
  float q = 0.121287324f;
  q = q * w + 0.10720095f;
  q = q * w + 0.143078059f;
  q = q * w + 0.199994653f;
  q = q * w + 0.333333373f;
  return 2.0f * (z + z * w * q);
}

// exp(-x^2 / 2), as accurate as the last place of x allows; 0 where it would be below the smallest normal number.
FT_HD float exp_minus_half_square(float x) {
  const float magnitude = ::fabsf(x);
  const float a = magnitude > 13.27f ? 13.27f : magnitude;  // where n is -127 and the power below is 0; keeps a NaN
  const Reduced reduced = reduce(-0.5f * a * a);
  return (1.0f + expm1_poly(reduced.r)) * power_of_two(reduced.n);
}

// Phi(-a) exp(a^2 / 2) for a in [0, 15], relative error 6e-9. All coefficients are positive: nothing cancels.
FT_HD float mills_ratio(float a) {
  float p = 0.00412382279f;
  p = p * a + 0.0406837314f;
  p = p * a + 0.183384776f;
  p = p * a + 0.438496649f;
  p = p * a + 0.5f;
  float q = 0.0103367725f;
  q = q * a + 0.101985365f;
  q = q * a + 0.46986571f;
  q = q * a + 1.20312417f;
  q = q * a + 1.67487824f;
  q = q * a + 1.0f;
  return p / q;
}

FT_HD float normal_cdf(float x) {
  const float magnitude = ::fabsf(x);
  const float tail = exp_minus_half_square(x) * mills_ratio(magnitude > 13.27f ? 13.27f : magnitude);
  return x > 0.0f ? 1.0f - tail : tail;
}

// (1 - u) / (1 + u), u = exp(-2 |x|): from expm1 where 1 - u would cancel, as 1 - 2 u / (1 + u) where the error of u
// fades.
FT_HD float tanh(float x) {
  const float magnitude = ::fabsf(x);
  const Reduced a = reduce(clamp(-2.0f * magnitude, -30.0f, 0.0f));
  const float s = power_of_two(a.n), sp = s * expm1_poly(a.r);
  const float u = s + sp, e = (s - 1.0f) + sp;
  const bool near_one = magnitude > 0.55f;
  const float q = (near_one ? 2.0f * u : -e) / (1.0f + u);
  const float t = near_one ? 1.0f - q : q;
  return x < 0.0f ? -t : t;
}

}  // namespace host

#if defined(__CUDA_ARCH__)
#define FT_FLOAT(device, host) device
#else
#define FT_FLOAT(device, host) host
#endif

FT_HD float exp(float x) { return FT_FLOAT(::expf(x), host::exp(x)); }
FT_HD double exp(double x) { return ::exp(x); }
FT_HD float expm1(float x) { return FT_FLOAT(::expm1f(x), host::expm1(x)); }
FT_HD double expm1(double x) { return ::expm1(x); }
FT_HD float tanh(float x) { return FT_FLOAT(::tanhf(x), host::tanh(x)); }
FT_HD double tanh(double x) { return ::tanh(x); }

// log(1 + u) for u in [0, 1].
FT_HD float log1p_unit(float u) { return FT_FLOAT(::log1pf(u), host::log1p_unit(u)); }
FT_HD double log1p_unit(double u) { return ::log1p(u); }

// The normal distribution: Phi(x), accurate in its negative tail, and its density exp(-x^2 / 2) / sqrt(2 pi).
FT_HD float normal_cdf(float x) { return FT_FLOAT(::normcdff(x), host::normal_cdf(x)); }
FT_HD double normal_cdf(double x) { return 0.5 * ::erfc(-x * 0.70710678118654752440); }
FT_HD float normal_pdf(float x) {
  return 0.398942280f * FT_FLOAT(::expf(-0.5f * x * x), host::exp_minus_half_square(x));
}
FT_HD double normal_pdf(double x) { return 0.39894228040143267794 * ::exp(-0.5 * x * x); }

#undef FT_FLOAT

// 1 / (1 + exp(-x)); small results keep their relative accuracy.
template <class T>
FT_HD T sigmoid(T x) {
  const T e = exp(-abs(x));
  const T s = T(1) / (T(1) + e);
  return x < T(0) ? e * s : s;
}

// sigmoid(x) and sigmoid(-x) for the price of one.
template <class T>
struct Sigmoids {
  T of_x, of_minus_x;
};
template <class T>
FT_HD Sigmoids<T> sigmoids(T x) {
  const T e = exp(-abs(x));
  const T larger = T(1) / (T(1) + e), smaller = e * larger;
  return {x < T(0) ? smaller : larger, x < T(0) ? larger : smaller};
}

}  // namespace ft
