// The arithmetic of rules whose results are stored in 16 bits: a float and cheaper functions of it.
//
// Each is within 2^-16 of its value, a 32nd of a unit in the last place of half precision and less of bfloat16. The
// normal distribution, which costs most, is so down to 6e-5; below, where half precision is subnormal, within 2^-13. If
// what is stored has no more than the 8 digits of bfloat16 it is within 2^-11.5, a 10th of a unit in the last place,
// below 3e-5 within 2^-10.5, and below 2^-121, where that fit ends, within 2^-8; a sum over rows, stored in 32 bits, is
// then of such terms. On the device exponentials, quotients and roots are the approximations of the hardware, good to
// 2^-21. They, and so these functions, flush to zero what is below the smallest normal float. On the host they are
// exact and flush as well, so that it shows the polynomials' error. Those are minimax fits as in platform.h. With a
// factor it is the product that is flushed: by one of 2^16 results are kept that lie beyond the end of that fit, within
// 2^-5.5.
#pragma once
#include "platform.h"

namespace ft {

namespace coarse {

// a b + c, rounded once where that is not slower.
FT_HD float multiply_add(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
  return ::fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

#if !defined(__CUDA_ARCH__)
FT_HD float flush(float x) { return ::fabsf(x) < 0x1p-126f ? x * 0.0f : x; }
#endif

FT_HD float exp2(float x) {
#if defined(__CUDA_ARCH__)
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return flush(::exp2f(x));
#endif
}

FT_HD float reciprocal(float x) {
#if defined(__CUDA_ARCH__)
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return flush(1.0f / flush(x));
#endif
}

FT_HD float sqrt(float x) {
#if defined(__CUDA_ARCH__)
  float y;
  asm("sqrt.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return ::sqrtf(x);
#endif
}

constexpr float kLog2E = 1.44269504f;

// log2(Phi(-a)) + more for a >= 0. Beyond 13.5, where Phi(-a) is below any float, it falls on to -inf.
template <int kDigits>
FT_HD float log2_normal_tail(float a, float more = 0) {
  if constexpr (kDigits <= 8) {
    float q = -4.09772127e-7f;
    q = multiply_add(q, a, 2.16630888e-5f);
    q = multiply_add(q, a, -4.82369476e-4f);
    q = multiply_add(q, a, 5.97702153e-3f);
    q = multiply_add(q, a, -0.0465528741f);
    q = multiply_add(q, a, -0.468846828f);
    q = multiply_add(q, a, -1.14577234f);
    return multiply_add(q, a, -1.00047135f + more);
  } else {
    float q = -2.07809014e-9f;
    q = multiply_add(q, a, 1.50915056e-7f);
    q = multiply_add(q, a, -4.79825212e-6f);
    q = multiply_add(q, a, 8.84734545e-5f);
    q = multiply_add(q, a, -1.06105721e-3f);
    q = multiply_add(q, a, 8.86007119e-3f);
    q = multiply_add(q, a, -0.0544718765f);
    q = multiply_add(q, a, -0.458104759f);
    q = multiply_add(q, a, -1.15134513f);
    return multiply_add(q, a, -0.999991357f + more);
  }
}

}  // namespace coarse

// What results are multiplied by, the same for all elements, as functions take it into their constants.
struct CoarseFactor {
  float value, inverse, log2;

  explicit FT_HD CoarseFactor(double factor)
      : value(float(factor)), inverse(float(1 / factor)), log2(float(::log2(factor))) {}
};

// kDigits: the binary digits of the type that results are stored in.
template <int kDigits>
struct Coarse {
  float value;

  template <class N>
  explicit FT_HD Coarse(N x) : value(float(x)) {}
  explicit FT_HD operator float() const { return value; }

  friend FT_HD Coarse operator-(Coarse a) { return Coarse(-a.value); }
  friend FT_HD Coarse operator+(Coarse a, Coarse b) { return Coarse(a.value + b.value); }
  friend FT_HD Coarse operator-(Coarse a, Coarse b) { return Coarse(a.value - b.value); }
  friend FT_HD Coarse operator*(Coarse a, Coarse b) { return Coarse(a.value * b.value); }
  // Division by a constant costs a product: the reciprocal is taken out of the loop.
  friend FT_HD Coarse operator/(Coarse a, Coarse b) { return Coarse(a.value * coarse::reciprocal(b.value)); }
  friend FT_HD bool operator==(Coarse a, Coarse b) { return a.value == b.value; }
  friend FT_HD bool operator!=(Coarse a, Coarse b) { return a.value != b.value; }
  friend FT_HD bool operator<(Coarse a, Coarse b) { return a.value < b.value; }
  friend FT_HD bool operator>(Coarse a, Coarse b) { return a.value > b.value; }
  friend FT_HD bool operator<=(Coarse a, Coarse b) { return a.value <= b.value; }
  friend FT_HD bool operator>=(Coarse a, Coarse b) { return a.value >= b.value; }

  friend FT_HD Coarse abs(Coarse x) { return Coarse(::fabsf(x.value)); }
  friend FT_HD Coarse sqrt(Coarse x) { return Coarse(coarse::sqrt(x.value)); }
  friend FT_HD Coarse exp(Coarse x) { return Coarse(coarse::exp2(x.value * coarse::kLog2E)); }

  friend FT_HD Coarse expm1(Coarse x) {
    float q = 0.0416370407f;  // for |x| <= 1/4, relative error 2^-17; beyond, little cancels
    q = coarse::multiply_add(q, x.value, 0.167098254f);
    q = coarse::multiply_add(q, x.value, 0.50000447f);
    const float near = coarse::multiply_add(x.value * x.value, q, x.value), far = exp(x).value - 1.0f;
    return Coarse(::fabsf(x.value) < 0.25f ? near : far);
  }

  // log(1 + u) = 2 atanh(z), z = u / (2 + u), for u in [0, 1].
  friend FT_HD Coarse log1p_unit(Coarse u) {
    const float z = u.value * coarse::reciprocal(2.0f + u.value), w = z * z;
    float q = 0.339974612f;
    q = coarse::multiply_add(q, w, 0.396338165f);
    q = coarse::multiply_add(q, w, 0.66673559f);
    return Coarse(z * coarse::multiply_add(w, q, 2.0f));
  }

  friend FT_HD Coarse tanh(Coarse x) {
    const Coarse e = expm1(Coarse(-2) * abs(x));
    const Coarse magnitude = -e / (Coarse(2) + e);
    return x < Coarse(0) ? -magnitude : magnitude;
  }

  friend FT_HD Coarse sigmoid(Coarse x) { return Coarse(coarse::reciprocal(1.0f + exp(-x).value)); }
  friend FT_HD Coarse sigmoid(Coarse x, const CoarseFactor& f) {
    return Coarse(coarse::reciprocal(coarse::multiply_add(exp(-x).value, f.inverse, f.inverse)));
  }

  // 1 - s is as good as sigmoid(-x) in a sum with terms of the order of 1, which is what a pair is for.
  friend FT_HD Sigmoids<Coarse> sigmoids(Coarse x) {
    const Coarse s = sigmoid(x);
    return {s, Coarse(1) - s};
  }

  friend FT_HD Coarse normal_cdf(Coarse x) {
    const float tail = coarse::exp2(coarse::log2_normal_tail<kDigits>(::fabsf(x.value)));
    return Coarse(x.value > 0.0f ? 1.0f - tail : tail);
  }
  friend FT_HD Coarse normal_cdf(Coarse x, const CoarseFactor& f) {
    const float tail = coarse::exp2(coarse::log2_normal_tail<kDigits>(::fabsf(x.value), f.log2));
    return Coarse(x.value > 0.0f ? f.value - tail : tail);
  }
  friend FT_HD Coarse normal_pdf(Coarse x) {
    return Coarse(coarse::exp2(coarse::multiply_add(x.value * x.value, -0.5f * coarse::kLog2E, -1.32574806f)));
  }
};

}  // namespace ft
