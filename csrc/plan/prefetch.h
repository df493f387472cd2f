// Thousands of small objects are looked at in a known order, and each lies somewhere else in memory.
#pragma once
#include <cstddef>

namespace ft {

constexpr size_t kAhead = 6;  // objects: while so many are looked at, the next arrives from the cache below

// Bring the cache line of an address nearer. The address need not be valid any more.
inline void prefetch(const void* address) { __builtin_prefetch(address); }
// The same with its neighbours: around the shape of a tensor of up to five dimensions, all that is read of a
// TensorImpl.
inline void prefetch_around(const void* address) {
  const char* const line = static_cast<const char*>(address);
  __builtin_prefetch(line - 64);
  __builtin_prefetch(line);
  __builtin_prefetch(line + 64);
  __builtin_prefetch(line + 128);
}

}  // namespace ft
