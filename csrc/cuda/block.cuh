// What the threads of a block do together, always in the same order: no result depends on which thread or block is
// first.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

namespace ft {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

// f(f(a, b), ...) of the values of all threads, for every thread. The block is a multiple of a warp; `scratch`, shared,
// has an entry for each warp.
template <class T, class F>
__device__ __forceinline__ T reduce_block(T value, T* scratch, F&& f) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    value = f(value, __shfl_xor_sync(kAllLanes, value, distance));
  }
  const int warps = int(blockDim.x) / kWarp;
  if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = value;
  __syncthreads();
  T total = scratch[0];
  for (int w = 1; w < warps; ++w) total = f(total, scratch[w]);
  __syncthreads();  // before anybody writes to scratch again
  return total;
}

// True, for all threads of one block only, once `all` parts have come here: the last to come, which then sees all that
// the others wrote before. A block comes with `mine` parts at once. `ticket` is 0 before and after.
__device__ __forceinline__ bool is_last_block(unsigned* ticket, unsigned all, int* shared_flag, unsigned mine = 1) {
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    const bool last = atomicAdd(ticket, mine) == all - mine;
    if (last) *ticket = 0;
    *shared_flag = last ? 1 : 0;
    __threadfence();
  }
  __syncthreads();
  return *shared_flag != 0;
}

}  // namespace ft
