// Where the chunks of a table on the device are.
#pragma once
#include "cuda/block.cuh"
#include "cuda/elements.cuh"
#include "cuda/step_launch.h"

namespace ft {

constexpr int kThreads = 256;  // of a block

struct Piece {
  int64_t row, begin, size;  // at most kDeviceChunk elements, so that offsets within a piece need no 64 bits
};

// The piece that a chunk is. All lanes of a warp ask together, and each warp for itself: threads need not meet. Every
// round of the search looks at 32 rows at once.
template <class Row>
__device__ __forceinline__ Piece find_piece(const DeviceTable<Row>& table, int64_t chunk) {
  const int64_t lane = threadIdx.x % kWarp;
  int64_t low = 0, end = table.row_count;  // the row is one of low..end-1
  while (end - low > 1) {
    const int64_t stride = (end - low + kWarp - 1) / kWarp, probe = low + lane * stride;
    const bool not_after = probe < end && table.first_chunk[probe] <= chunk;
    const int64_t last = kWarp - 1 - __clz(int(__ballot_sync(kAllLanes, not_after)));
    low += last * stride;
    end = low + stride < end ? low + stride : end;
  }
  const int64_t begin = (chunk - table.first_chunk[low]) * kDeviceChunk, rest = table.rows[low].numel - begin;
  return {low, begin, rest < kDeviceChunk ? rest : kDeviceChunk};
}

// The compiler cannot know where a pointer leads that it finds in a table; told so, it uses the loads and stores of
// global memory, not those that look first.
template <class T>
__device__ __forceinline__ T* in_global(T* x) {
#if defined(__CUDA_ARCH__)
  __builtin_assume(__isGlobal(x));
#endif
  return x;
}

template <class T>
__device__ __forceinline__ bool is_aligned_to(const T* x, int bytes) {
  return reinterpret_cast<uintptr_t>(x) % unsigned(bytes) == 0;
}

// How many elements precede the first that is aligned as a vector of N is.
template <int N, class T>
__device__ __forceinline__ int elements_before_vector(const T* x) {
  constexpr unsigned kBytes = unsigned(sizeof(T)) * N;
  return int((kBytes - reinterpret_cast<uintptr_t>(x) % kBytes) / sizeof(T)) % N;
}

// A scalar that may be absent.
__device__ __forceinline__ double read(const ScalarRef& x, double absent) {
  return x.data != nullptr ? load<double>(x.data, x.dtype, 0) : absent;
}
__device__ __forceinline__ void write(const ScalarRef& x, double value) {
  if (x.data != nullptr) store<double>(x.data, x.dtype, 0, value);
}

}  // namespace ft
