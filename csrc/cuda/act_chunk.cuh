// Chunks of eight consecutive elements, which share one call of Philox and belong to one thread: their dropout mask,
// and how they are moved.
#pragma once
#include <cstring>
#include <type_traits>

#include "cuda/act_launch.h"
#include "cuda/elements.cuh"
#include "rules/coarse.h"
#include "rules/philox.h"

namespace ft {

constexpr int kChunk = 8;

// The types that elements of T are computed in: Wide in memory of a thread, Rule within a rule.
template <class T>
struct Arithmetic;
template <>
struct Arithmetic<__half> {
  using Wide = float;
  using Rule = Coarse<11>;
};
template <>
struct Arithmetic<__nv_bfloat16> {
  using Wide = float;
  using Rule = Coarse<8>;
};
template <>
struct Arithmetic<float> {
  using Wide = float;
  using Rule = float;
};
template <>
struct Arithmetic<double> {
  using Wide = double;
  using Rule = double;
};
template <class T>
using WideOf = typename Arithmetic<T>::Wide;
template <class T>
using RuleOf = typename Arithmetic<T>::Rule;

// A pair of words for ft::philox4x32. Of pairs in 64 bits the compiler would compute each product twice.
struct WordPair {
  uint32_t low, high;
};
__device__ __forceinline__ WordPair multiply_low_word(WordPair pair, uint32_t factor) {
  uint64_t product;
#if defined(__CUDA_ARCH__)
  asm("mul.wide.u32 %0, %1, %2;" : "=l"(product) : "r"(pair.low), "r"(factor));
#else
  product = uint64_t(pair.low) * factor;
#endif
  return {uint32_t(product), uint32_t(product >> 32)};
}
__device__ __forceinline__ WordPair swap_words(WordPair pair) { return {pair.high, pair.low}; }
__device__ __forceinline__ WordPair high_word(WordPair pair) { return {pair.high, 0}; }
__device__ __forceinline__ WordPair operator^(WordPair a, WordPair b) { return {a.low ^ b.low, a.high ^ b.high}; }
__device__ __forceinline__ WordPair operator^(WordPair a, uint32_t word) { return {a.low ^ word, a.high}; }

// Where the dropout of a call takes its masks from. The bound, in both halves of a word, is one below the threshold:
// 65536, which keeps nothing, has no bits to spare otherwise.
struct Drop {
  const int64_t* state;
  int64_t stride;
  bool draws;
  uint32_t bounds;

  explicit Drop(const ActLaunch& call, bool may_draw = true)
      : state(call.rng_state),
        stride(call.rng_stride),
        draws(may_draw && call.threshold > 0),
        bounds(draws ? (call.threshold - 1u) * 0x10001u : 0u) {}
};

// Which of two neighbours are kept: those whose lane, of the two in a word, is above the bound.
struct Kept {
  bool first, second;
};
// Each lane is compared where it lies, or moved, at the upper end of a word. What is below it cannot matter if the
// lower half of the bound is all ones. Not by __vibmin_u16x2, which would be less: ptxas of CUDA 13.0 may swap its
// operands, and its predicates are then those of the other one.
__device__ __forceinline__ Kept kept_of(uint32_t lanes, uint32_t bounds) {
  const uint32_t bound = bounds | 0xffffu;
  return {lanes << 16 > bound, lanes > bound};
}
// Which elements of a chunk are kept: all, until lanes are given.
class Keep {
 public:
  __device__ __forceinline__ explicit Keep(const Drop& drop) : words_{~0u, ~0u, ~0u, ~0u}, bounds_(drop.bounds) {}

  __device__ __forceinline__ void set_lanes(WordPair first, WordPair second) {
    words_[0] = first.low, words_[1] = first.high;
    words_[2] = second.low, words_[3] = second.high;
  }

  // Calls take(k, kept) for every element of the chunk.
  template <class Take>
  __device__ __forceinline__ void for_each(const Take& take) const {
#pragma unroll
    for (int k = 0; k < kChunk; k += 2) {
      const Kept kept = kept_of(words_[k / 2], bounds_);
      take(k, kept.first);
      take(k + 1, kept.second);
    }
  }
  // The same by bits, for loops that are not unrolled.
  __device__ __forceinline__ unsigned bits() const {
    unsigned all = 0;
    for_each([&](int k, bool kept) { all |= kept ? 1u << k : 0u; });
    return all;
  }

 private:
  uint32_t words_[4];
  uint32_t bounds_;
};

// For elements of T. Of 16 bits the keys of all rounds are kept: computed where they are needed, they cost more than an
// instruction an element. That they are zeros where nothing is drawn is what keeps them in uniform registers. Of wider
// elements the seed is: there are not registers enough, and memory binds these kernels, not instructions.
template <class T>
class Masks {
 public:
  __device__ __forceinline__ explicit Masks(const Drop& drop) : draws(drop.draws) {
    if (!draws) return;
    keys_ = Keys(uint64_t(drop.state[0]));
    block_ = uint64_t(drop.state[drop.stride]) / 4;
  }

  // Gives it the lanes of the chunk that begins at this element, if there are lanes.
  __device__ __forceinline__ void draw(int64_t start, Keep& keep) const {
    const uint64_t chunk = uint64_t(start) / kChunk;
    WordPair first = {uint32_t(block_), uint32_t(block_ >> 32)}, second = {uint32_t(chunk), uint32_t(chunk >> 32)};
    philox4x32(first, second, PhiloxKeys(keys_));
    keep.set_lanes(first, second);
  }

  const bool draws;

 private:
  using Keys = std::conditional_t<sizeof(T) == 2, PhiloxKeys, uint64_t>;
  Keys keys_{};
  uint64_t block_ = 0;
};

// Eight elements as they lie in memory, in whole registers.
template <class T>
struct Chunk {
  static constexpr int kVectors = kChunk * int(sizeof(T)) / kVectorBytes;
  uint32_t words[4 * kVectors];
};

// From x + start, aligned to a vector.
template <class T>
__device__ __forceinline__ Chunk<T> load_chunk(const T* x, int64_t start) {
  Chunk<T> chunk;
#pragma unroll
  for (int v = 0; v < Chunk<T>::kVectors; ++v) {
    const uint4 four = reinterpret_cast<const uint4*>(x + start)[v];
    chunk.words[4 * v] = four.x, chunk.words[4 * v + 1] = four.y;
    chunk.words[4 * v + 2] = four.z, chunk.words[4 * v + 3] = four.w;
  }
  return chunk;
}

__device__ __forceinline__ void unpack(const Chunk<float>& chunk, float (&to)[kChunk]) {
#pragma unroll
  for (int k = 0; k < kChunk; ++k) to[k] = __uint_as_float(chunk.words[k]);
}
// The upper half of a float is the bfloat16 that it is the widening of.
__device__ __forceinline__ void unpack(const Chunk<__nv_bfloat16>& chunk, float (&to)[kChunk]) {
#pragma unroll
  for (int k = 0; k < kChunk; k += 2) {
    to[k] = __uint_as_float(chunk.words[k / 2] << 16);
    to[k + 1] = __uint_as_float(chunk.words[k / 2] & 0xffff0000u);
  }
}
__device__ __forceinline__ void unpack(const Chunk<__half>& chunk, float (&to)[kChunk]) {
#pragma unroll
  for (int k = 0; k < kChunk; k += 2) {
    to[k] = __half2float(__ushort_as_half(uint16_t(chunk.words[k / 2])));
    to[k + 1] = __half2float(__ushort_as_half(uint16_t(chunk.words[k / 2] >> 16)));
  }
}

template <class Pair>
__device__ __forceinline__ uint32_t word_of(Pair pair) {
  static_assert(sizeof pair == sizeof(uint32_t));
  uint32_t word;
  memcpy(&word, &pair, sizeof word);
  return word;
}
__device__ __forceinline__ Chunk<float> packed(const float (&from)[kChunk], const float*) {
  Chunk<float> chunk;
#pragma unroll
  for (int k = 0; k < kChunk; ++k) chunk.words[k] = __float_as_uint(from[k]);
  return chunk;
}
__device__ __forceinline__ Chunk<__nv_bfloat16> packed(const float (&from)[kChunk], const __nv_bfloat16*) {
  Chunk<__nv_bfloat16> chunk;
#pragma unroll
  for (int k = 0; k < kChunk; k += 2) chunk.words[k / 2] = word_of(__floats2bfloat162_rn(from[k], from[k + 1]));
  return chunk;
}
__device__ __forceinline__ Chunk<__half> packed(const float (&from)[kChunk], const __half*) {
  Chunk<__half> chunk;
#pragma unroll
  for (int k = 0; k < kChunk; k += 2) chunk.words[k / 2] = word_of(__floats2half2_rn(from[k], from[k + 1]));
  return chunk;
}

// To x + start, aligned to a vector, each rounded once. By a function that is one instruction: the compiler would take
// some assignments apart.
template <class T>
__device__ __forceinline__ void store_chunk(T* x, int64_t start, const float (&from)[kChunk]) {
  const Chunk<T> chunk = packed(from, x);
#pragma unroll
  for (int v = 0; v < Chunk<T>::kVectors; ++v) {
    const uint32_t* words = chunk.words + 4 * v;
    __stcg(reinterpret_cast<uint4*>(x + start) + v, make_uint4(words[0], words[1], words[2], words[3]));
  }
}

// Whether x is anything but +0.0, which in an output marks a dropped element.
__device__ __forceinline__ bool is_not_positive_zero(float x) { return __float_as_uint(x) != 0; }
__device__ __forceinline__ bool is_not_positive_zero(double x) { return __double_as_longlong(x) != 0; }

// A bias or residual: of the type of the elements, or of that of their arithmetic.
template <class T>
struct Operand {
  using Wide = WideOf<T>;
  const void* data;
  bool exists, is_wide;

  explicit Operand(const ActInput& input)
      : data(input.data),
        exists(data != nullptr),
        is_wide(input.dtype == DType::kFloat || input.dtype == DType::kDouble) {}

  __device__ __forceinline__ Wide operator[](int64_t i) const {
    return is_wide ? static_cast<const Wide*>(data)[i] : widen<Wide>(static_cast<const T*>(data)[i]);
  }
  __device__ __forceinline__ void load(Wide (&values)[kChunk], int64_t start) const {
    if (is_wide) {
      unpack(load_chunk(static_cast<const Wide*>(data), start), values);
    } else {
      unpack(load_chunk(static_cast<const T*>(data), start), values);
    }
  }
  __device__ __forceinline__ void add_to(Wide (&x)[kChunk], int64_t start) const {
    Wide values[kChunk];
    load(values, start);
#pragma unroll
    for (int k = 0; k < kChunk; ++k) x[k] += values[k];
  }
};

// The biases of a thread's columns: of 16-bit elements in registers, of wider ones, for which there are none left,
// where they are.
template <class T>
class ColumnBias {
 public:
  using Wide = WideOf<T>;

  template <class Op>
  __device__ __forceinline__ ColumnBias(const Op& op, int64_t column) : bias_(op.bias), column_(column) {
    if constexpr (kKept) {
      if (bias_.exists) bias_.load(values_, column);
    }
  }
  // To the elements of a chunk, if there is a bias.
  __device__ __forceinline__ void add_to(Wide (&x)[kChunk]) const {
    if (!bias_.exists) return;
    if constexpr (kKept) {
#pragma unroll
      for (int k = 0; k < kChunk; ++k) x[k] += values_[k];
    } else {
      bias_.add_to(x, column_);
    }
  }

 private:
  static constexpr bool kKept = sizeof(T) == 2;
  const Operand<T>& bias_;
  int64_t column_;
  Wide values_[kChunk] = {};
};

}  // namespace ft
