// In the place of CUDA's header: half precision as the compiler has it.
#pragma once
#include <cuda_runtime.h>

struct alignas(2) __half {
  uint16_t __x;
};
struct alignas(4) __half2 {
  __half x, y;
};

namespace emu {
inline __half half_of(_Float16 x) { return {__emu_bits<uint16_t>(x)}; }
}  // namespace emu

inline float __half2float(__half x) { return float(__emu_bits<_Float16>(x.__x)); }
inline __half __float2half_rn(float x) { return emu::half_of(_Float16(x)); }
inline __half __float2half(float x) { return __float2half_rn(x); }
inline __half __double2half(double x) { return emu::half_of(_Float16(x)); }
inline unsigned short __half_as_ushort(__half x) { return x.__x; }
inline __half __ushort_as_half(unsigned short x) { return {x}; }
inline __half2 __floats2half2_rn(float x, float y) { return {__float2half_rn(x), __float2half_rn(y)}; }
inline __half2 __float22half2_rn(float2 v) { return __floats2half2_rn(v.x, v.y); }
inline float2 __half22float2(__half2 v) { return {__half2float(v.x), __half2float(v.y)}; }
