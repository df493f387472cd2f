// Conversion of runs of elements, rounding to nearest even. Included between isa_begin.h and isa_end.h.
// No include guard: it is included once per instruction set.
namespace ft {
namespace FT_ISA {

inline float widen(BFloat16 x) { return host::from_bits(int32_t(uint32_t(x.bits) << 16)); }

inline BFloat16 narrow_bfloat16(float x) {
  const uint32_t b = uint32_t(host::bits(x));
  const uint32_t rounded = (b + 0x7fffu + ((b >> 16) & 1u)) >> 16;
  return {uint16_t(x != x ? 0x7fc0u : rounded)};  // rounding could carry a NaN's payload into the exponent
}

// Half precision by arithmetic on the bits, for instruction sets that lack the conversion (after M. Dukhan's FP16):
// multiplying by a power of two lets the float unit normalise subnormals, and adding one lets it round.
inline float widen(Half x) {
  const uint32_t w = uint32_t(x.bits) << 16, twice = w + w;
  const float normal = host::from_bits(int32_t((twice >> 4) + (0xe0u << 23))) * 0x1.0p-112f;
  const float subnormal = host::from_bits(int32_t((twice >> 17) | (126u << 23))) - 0.5f;
  const uint32_t magnitude = uint32_t(host::bits(twice < (1u << 27) ? subnormal : normal));
  return host::from_bits(int32_t((w & 0x80000000u) | magnitude));
}

inline Half narrow_half(float x) {
  const uint32_t w = uint32_t(host::bits(x)), twice = w + w;
  const float scaled = (host::from_bits(int32_t(w & 0x7fffffffu)) * 0x1.0p+112f) * 0x1.0p-110f;
  const uint32_t exponent = twice & 0xff000000u;
  const uint32_t bias = exponent < 0x71000000u ? 0x71000000u : exponent;
  const uint32_t b = uint32_t(host::bits(host::from_bits(int32_t((bias >> 1) + 0x07800000u)) + scaled));
  const uint32_t finite = ((b >> 13) & 0x7c00u) + (b & 0xfffu);
  return {uint16_t(((w & 0x80000000u) >> 16) | (twice > 0xff000000u ? 0x7e00u : finite))};
}

inline void convert(const float* x, float* y, int64_t n) { std::memcpy(y, x, size_t(n) * sizeof *x); }
inline void convert(const double* x, double* y, int64_t n) { std::memcpy(y, x, size_t(n) * sizeof *x); }
inline void convert(const float* __restrict x, double* __restrict y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = x[i];
}
inline void convert(const double* __restrict x, float* __restrict y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = float(x[i]);
}
template <class C>
inline void convert(const BFloat16* __restrict x, C* __restrict y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = C(widen(x[i]));
}
inline void convert(const float* __restrict x, BFloat16* __restrict y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = narrow_bfloat16(x[i]);
}

#if FT_ISA_LEVEL == 1
template <class C>
inline void convert(const Half* __restrict x, C* __restrict y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = C(widen(x[i]));
}
inline void convert(const float* __restrict x, Half* __restrict y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = narrow_half(x[i]);
}
#else
inline void convert(const Half* __restrict x, float* __restrict y, int64_t n) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    _mm256_storeu_ps(y + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x + i))));
  }
  for (; i < n; ++i) y[i] = _cvtsh_ss(x[i].bits);
}
inline void convert(const Half* __restrict x, double* __restrict y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = _cvtsh_ss(x[i].bits);
}
inline void convert(const float* __restrict x, Half* __restrict y, int64_t n) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m128i halves = _mm256_cvtps_ph(_mm256_loadu_ps(x + i), _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(y + i), halves);
  }
  for (; i < n; ++i) y[i].bits = uint16_t(_cvtss_sh(x[i], _MM_FROUND_TO_NEAREST_INT));
}
#endif

}  // namespace FT_ISA
}  // namespace ft
