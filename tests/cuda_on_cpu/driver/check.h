// What the cases of the driver share: buffers that end where their elements do, values, and a count of what is wrong.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>

#include "plan/dtype.h"

namespace ft {

constexpr DType kAllTypes[] = {DType::kFloat, DType::kDouble, DType::kHalf, DType::kBFloat16};

// The distance from 1 to the next number of a type.
inline double epsilon(DType dtype) {
  return dtype == DType::kDouble  ? 0x1p-52
         : dtype == DType::kFloat ? 0x1p-23
         : dtype == DType::kHalf  ? 0x1p-10
                                  : 0x1p-7;
}

// Elements of any type, `offset` bytes from an aligned address. They end where the allocation does, so that the address
// sanitizer sees the first byte beyond; what is before them is checked by intact().
class Buffer {
 public:
  Buffer(DType dtype, int64_t numel, int64_t offset = 0)
      : dtype_(dtype), numel_(numel), offset_(offset), memory_(new unsigned char[size_t(offset + bytes())]) {
    std::memset(memory_.get(), kGuard, size_t(offset + bytes()));
  }

  void* data() { return memory_.get() + offset_; }
  int64_t numel() const { return numel_; }
  DType dtype() const { return dtype_; }

  double get(int64_t i) const {
    const unsigned char* const at = memory_.get() + offset_ + i * size_of(dtype_);
    switch (dtype_) {
      case DType::kFloat:
        return double(read<float>(at));
      case DType::kDouble:
        return read<double>(at);
      case DType::kHalf:
        return double(__half2float(read<__half>(at)));
      case DType::kBFloat16:
        return double(__bfloat162float(read<__nv_bfloat16>(at)));
    }
    return 0;
  }
  void set(int64_t i, double value) {
    unsigned char* const at = memory_.get() + offset_ + i * size_of(dtype_);
    switch (dtype_) {
      case DType::kFloat:
        return write(at, float(value));
      case DType::kDouble:
        return write(at, value);
      case DType::kHalf:
        return write(at, __double2half(value));
      case DType::kBFloat16:
        return write(at, __double2bfloat16(value));
    }
  }
  // Values between -4 and 4 that differ from one another and between seeds.
  void fill(int seed) {
    for (int64_t i = 0; i < numel_; ++i) set(i, 4 * std::sin(1.0 + double(i) * 0.7 + seed * 2.3));
  }
  void fill_with(double value) {
    for (int64_t i = 0; i < numel_; ++i) set(i, value);
  }

  bool intact() const {
    for (int64_t k = 0; k < offset_; ++k) {
      if (memory_[size_t(k)] != kGuard) return false;
    }
    return true;
  }

 private:
  static constexpr unsigned char kGuard = 0xAB;

  template <class T>
  static T read(const unsigned char* at) {
    T value;
    std::memcpy(&value, at, sizeof value);
    return value;
  }
  template <class T>
  static void write(unsigned char* at, T value) {
    std::memcpy(at, &value, sizeof value);
  }
  int64_t bytes() const { return numel_ * size_of(dtype_); }

  DType dtype_;
  int64_t numel_, offset_;
  std::unique_ptr<unsigned char[]> memory_;
};

// The cases done and what was wrong with them.
struct Tally {
  int64_t cases = 0, wrong = 0;
  bool few = false;  // only what threads do together: the thread sanitizer is slow, and elements have nothing in common

  template <class... Parts>
  void expect(bool ok, const char* format, Parts... parts) {
    if (ok) return;
    if (++wrong > 20) return;
    std::printf("WRONG ");
    std::printf(format, parts...);
    std::printf("\n");
  }
  // Near enough to tell a wrong element from a right one; how accurate kernels are is measured elsewhere.
  bool near(double got, double exact, DType dtype) {
    return std::abs(got - exact) <= 16 * epsilon(dtype) * (1 + std::abs(exact)) || got == exact;
  }
};

// Of the part that a driver is linked with.
void cases(Tally& tally);

}  // namespace ft
