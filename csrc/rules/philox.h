// Philox4x32-10 (Salmon et al. 2011) in the counter layout of the RNG contract (fusedtrain/rng.py): one counter gives
// the 16-bit lanes of eight consecutive elements.
#pragma once
#include <cstdint>

#include "platform.h"

namespace ft {

// A pair of 32-bit words, the first in the low half. A SIMD type may stand for it with the same four operations.
FT_HD uint64_t multiply_low_word(uint64_t pair, uint32_t factor) { return uint64_t(uint32_t(pair)) * factor; }
FT_HD uint64_t swap_words(uint64_t pair) { return pair << 32 | pair >> 32; }
FT_HD uint64_t high_word(uint64_t pair) { return pair >> 32; }

#if defined(__CUDA_ARCH__)
#define FT_UNROLL_ROUNDS _Pragma("unroll")
#elif defined(__GNUC__) && !defined(__clang__) && !defined(__CUDACC__)
#define FT_UNROLL_ROUNDS _Pragma("GCC unroll 10")
#else
#define FT_UNROLL_ROUNDS
#endif

// What the ten rounds mix in: two words each.
struct PhiloxKeys {
  static constexpr int kRounds = 10;
  uint32_t words[kRounds][2];

  PhiloxKeys() = default;
  explicit FT_HD PhiloxKeys(uint64_t seed) {
    words[0][0] = uint32_t(seed), words[0][1] = uint32_t(seed >> 32);
    FT_UNROLL_ROUNDS
    for (int round = 1; round < kRounds; ++round) {
      words[round][0] = words[round - 1][0] + 0x9E3779B9u;
      words[round][1] = words[round - 1][1] + 0xBB67AE85u;
    }
  }
};

// Ten rounds on the counter words (c0, c1) and (c2, c3). As a product holds its high word where the next round wants
// it but for a swap, words are kept in pairs throughout: (c0, c1) <- (hi1 ^ c1 ^ k0, lo1).
template <class Pair>
FT_HD void philox4x32(Pair& c01, Pair& c23, const PhiloxKeys& keys) {
  FT_UNROLL_ROUNDS
  for (int round = 0; round < PhiloxKeys::kRounds; ++round) {
    const Pair product0 = multiply_low_word(c01, 0xD2511F53u), product1 = multiply_low_word(c23, 0xCD9E8D57u);
    c01 = swap_words(product1) ^ high_word(c01) ^ keys.words[round][0];
    c23 = swap_words(product0) ^ high_word(c23) ^ keys.words[round][1];
  }
}

#undef FT_UNROLL_ROUNDS

// The eight lanes of elements 8 chunk to 8 chunk + 7: lane l is bits 16 (l % 4) and up of words[l / 4].
struct Lanes {
  uint64_t words[2];
  FT_HD uint32_t operator[](int lane) const { return uint32_t(words[lane >> 2] >> (16 * (lane & 3))) & 0xffffu; }
};

FT_HD Lanes lanes(int64_t seed, int64_t offset, int64_t chunk) {
  Lanes out = {{uint64_t(offset) >> 2, uint64_t(chunk)}};
  philox4x32(out.words[0], out.words[1], PhiloxKeys(uint64_t(seed)));
  return out;
}

}  // namespace ft
