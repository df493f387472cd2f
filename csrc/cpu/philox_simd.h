// The lanes of many chunks at once. Included between isa_begin.h and isa_end.h.
// No include guard: it is included once per instruction set.
namespace ft {
namespace FT_ISA {

// kPairs pairs of words, each in a 64-bit element, with the operations that ft::philox4x32 wants. `Pairs::chunks` puts
// the chunks where `store`, which interleaves within 128 bits, needs them to write the words of chunk after chunk.
#if FT_ISA_LEVEL == 3
constexpr int kPairs = 8;
struct Pairs {
  __m512i v;
  static Pairs all(uint64_t pair) { return {_mm512_set1_epi64(int64_t(pair))}; }
  static Pairs chunks(uint64_t first) {
    return {_mm512_add_epi64(_mm512_set1_epi64(int64_t(first)), _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7))};
  }
  static void store(Pairs c01, Pairs c23, uint16_t* out) {
    _mm512_storeu_si512(out, _mm512_unpacklo_epi64(c01.v, c23.v));
    _mm512_storeu_si512(out + 32, _mm512_unpackhi_epi64(c01.v, c23.v));
  }
};
inline Pairs multiply_low_word(Pairs a, uint32_t factor) { return {_mm512_mul_epu32(a.v, _mm512_set1_epi64(factor))}; }
inline Pairs swap_words(Pairs a) { return {_mm512_shuffle_epi32(a.v, _MM_PERM_CDAB)}; }
inline Pairs high_word(Pairs a) { return {_mm512_srli_epi64(a.v, 32)}; }
inline Pairs operator^(Pairs a, Pairs b) { return {_mm512_xor_si512(a.v, b.v)}; }
#elif FT_ISA_LEVEL == 2
constexpr int kPairs = 4;
struct Pairs {
  __m256i v;
  static Pairs all(uint64_t pair) { return {_mm256_set1_epi64x(int64_t(pair))}; }
  static Pairs chunks(uint64_t first) {
    return {_mm256_add_epi64(_mm256_set1_epi64x(int64_t(first)), _mm256_setr_epi64x(0, 2, 1, 3))};
  }
  static void store(Pairs c01, Pairs c23, uint16_t* out) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm256_unpacklo_epi64(c01.v, c23.v));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + 16), _mm256_unpackhi_epi64(c01.v, c23.v));
  }
};
inline Pairs multiply_low_word(Pairs a, uint32_t factor) { return {_mm256_mul_epu32(a.v, _mm256_set1_epi64x(factor))}; }
inline Pairs swap_words(Pairs a) { return {_mm256_shuffle_epi32(a.v, 0xb1)}; }
inline Pairs high_word(Pairs a) { return {_mm256_srli_epi64(a.v, 32)}; }
inline Pairs operator^(Pairs a, Pairs b) { return {_mm256_xor_si256(a.v, b.v)}; }
#else
constexpr int kPairs = 1;
struct Pairs {
  uint64_t v;
  static Pairs all(uint64_t pair) { return {pair}; }
  static Pairs chunks(uint64_t first) { return {first}; }
  static void store(Pairs c01, Pairs c23, uint16_t* out) {
    std::memcpy(out, &c01.v, 8);
    std::memcpy(out + 4, &c23.v, 8);
  }
};
inline Pairs multiply_low_word(Pairs a, uint32_t factor) { return {ft::multiply_low_word(a.v, factor)}; }
inline Pairs swap_words(Pairs a) { return {ft::swap_words(a.v)}; }
inline Pairs high_word(Pairs a) { return {ft::high_word(a.v)}; }
inline Pairs operator^(Pairs a, Pairs b) { return {a.v ^ b.v}; }
#endif
inline Pairs operator^(Pairs a, uint32_t word) { return a ^ Pairs::all(word); }

// The lanes of the chunks from `chunk` on, at least n of them: n rounded up to a multiple of 8 kPairs.
inline void fill_lanes(int64_t seed, int64_t offset, int64_t chunk, uint16_t* lanes, int64_t n) {
  const PhiloxKeys keys{uint64_t(seed)};
  for (int64_t i = 0; i < n; i += 8 * kPairs, chunk += kPairs) {
    Pairs c01 = Pairs::all(uint64_t(offset) >> 2), c23 = Pairs::chunks(uint64_t(chunk));
    philox4x32(c01, c23, keys);
    Pairs::store(c01, c23, lanes + i);
  }
}

}  // namespace FT_ISA
}  // namespace ft
