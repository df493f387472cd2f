// Elements of tensors on the device: the four types, their conversion to the type of the arithmetic, and 16-byte
// vectors of them.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "plan/dtype.h"

namespace ft {

constexpr int kVectorBytes = 16;  // the widest load and store that a thread can do at once

template <class C>
__device__ __forceinline__ C widen(float x) {
  return C(x);
}
template <class C>
__device__ __forceinline__ C widen(double x) {
  return C(x);
}
template <class C>
__device__ __forceinline__ C widen(__half x) {
  return C(__half2float(x));
}
template <class C>
__device__ __forceinline__ C widen(__nv_bfloat16 x) {
  return C(__bfloat162float(x));
}

// Rounds once, to nearest even.
template <class T, class C>
__device__ __forceinline__ T narrow(C x);
template <>
__device__ __forceinline__ float narrow<float, float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ float narrow<float, double>(double x) {
  return float(x);
}
template <>
__device__ __forceinline__ double narrow<double, double>(double x) {
  return x;
}
template <>
__device__ __forceinline__ double narrow<double, float>(float x) {
  return double(x);
}
template <>
__device__ __forceinline__ __half narrow<__half, float>(float x) {
  return __float2half_rn(x);
}
template <>
__device__ __forceinline__ __half narrow<__half, double>(double x) {
  return __double2half(x);
}
template <>
__device__ __forceinline__ __nv_bfloat16 narrow<__nv_bfloat16, float>(float x) {
  return __float2bfloat16_rn(x);
}
template <>
__device__ __forceinline__ __nv_bfloat16 narrow<__nv_bfloat16, double>(double x) {
  return __double2bfloat16(x);
}

// One element of a type that is known at run time only.
template <class C>
__device__ __forceinline__ C load(const void* x, DType dtype, int64_t i) {
  switch (dtype) {
    case DType::kFloat:
      return widen<C>(static_cast<const float*>(x)[i]);
    case DType::kDouble:
      return widen<C>(static_cast<const double*>(x)[i]);
    case DType::kHalf:
      return widen<C>(static_cast<const __half*>(x)[i]);
    case DType::kBFloat16:
      return widen<C>(static_cast<const __nv_bfloat16*>(x)[i]);
  }
  return C(0);
}
template <class C>
__device__ __forceinline__ void store(void* x, DType dtype, int64_t i, C value) {
  switch (dtype) {
    case DType::kFloat:
      static_cast<float*>(x)[i] = narrow<float>(value);
      break;
    case DType::kDouble:
      static_cast<double*>(x)[i] = narrow<double>(value);
      break;
    case DType::kHalf:
      static_cast<__half*>(x)[i] = narrow<__half>(value);
      break;
    case DType::kBFloat16:
      static_cast<__nv_bfloat16*>(x)[i] = narrow<__nv_bfloat16>(value);
      break;
  }
}

// N consecutive elements, moved by as few instructions as there are: x must be aligned to the vector's size, 16 bytes
// at most.
template <class T, int N>
struct alignas(sizeof(T) * N < kVectorBytes ? sizeof(T) * N : kVectorBytes) Vector {
  T values[N];
};

// From sm_100 on nvcc 13 takes plain accesses apart where a kernel has many of them, so there they are asked for by
// name, with the cache policies that are the default ones. Before, where it does not, that would make registers spill.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
template <class V>
struct Whole {
  using Bits = std::conditional_t<sizeof(V) % sizeof(int4) == 0, int4, int2>;
  static constexpr int kParts = int(sizeof(V) / sizeof(Bits));
  static_assert(sizeof(V) % sizeof(Bits) == 0, "a vector of less than 8 bytes");

  static __device__ __forceinline__ V load(const V* x) {
    Bits bits[kParts];
#pragma unroll
    for (int k = 0; k < kParts; ++k) bits[k] = __ldca(reinterpret_cast<const Bits*>(x) + k);
    V v;
    memcpy(&v, bits, sizeof v);
    return v;
  }
  static __device__ __forceinline__ void store(V* x, const V& v) {
    Bits bits[kParts];
    memcpy(bits, &v, sizeof v);
#pragma unroll
    for (int k = 0; k < kParts; ++k) __stwb(reinterpret_cast<Bits*>(x) + k, bits[k]);
  }
};
#else
template <class V>
struct Whole {
  static __device__ __forceinline__ V load(const V* x) { return *x; }
  static __device__ __forceinline__ void store(V* x, const V& v) { *x = v; }
};
#endif

template <int N, class C, class T>
__device__ __forceinline__ void load_vector(const T* x, C (&to)[N]) {
  using V = Vector<T, N>;
  const V v = Whole<V>::load(reinterpret_cast<const V*>(x));
#pragma unroll
  for (int k = 0; k < N; ++k) to[k] = widen<C>(v.values[k]);
}
template <int N, class C, class T>
__device__ __forceinline__ void store_vector(T* x, const C (&from)[N]) {
  Vector<T, N> v;
#pragma unroll
  for (int k = 0; k < N; ++k) v.values[k] = narrow<T>(from[k]);
  Whole<Vector<T, N>>::store(reinterpret_cast<Vector<T, N>*>(x), v);
}

inline bool is_aligned(const void* x) { return reinterpret_cast<uintptr_t>(x) % kVectorBytes == 0; }

}  // namespace ft
