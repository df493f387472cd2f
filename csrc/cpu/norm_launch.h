// The norm of all elements of many runs of memory, as one vector.
#pragma once
#include <torch/csrc/stable/ops.h>

#include <cmath>
#include <vector>

#include "cpu/step_kernels.h"
#include "cpu/tasks.h"

namespace ft {

struct Norm {
  double value = 0;
  bool nonfinite = false;  // whether any element is inf or NaN; a finite input may have an infinite norm
};

enum class Reduction { kSquares, kScaledSquares, kMagnitudes, kPowers, kMax };

constexpr int64_t kBufferSize = 1024;

template <class C>
double reduce_run(Reduction reduction, const C* x, int64_t n, int exponent, double p) {
  const StepKernels<C>& kernels = step_kernels<C>();
  switch (reduction) {
    case Reduction::kSquares:
      return kernels.sum_squares(x, n);
    case Reduction::kScaledSquares:
      return kernels.sum_scaled_squares(x, std::ldexp(1.0, std::min(-exponent, 1000)), n);
    case Reduction::kMagnitudes:
      return kernels.sum_magnitudes(x, n);
    case Reduction::kPowers:
      return kernels.sum_powers(x, exponent, p, n);
    case Reduction::kMax:
      return kernels.max_magnitude(x, n);
  }
  return 0;
}

inline double combine(Reduction reduction, double a, double b) {
  if (reduction != Reduction::kMax) return a + b;
  return b > a || b != b ? b : a;  // a NaN wins
}

inline double reduce_chunk(Reduction reduction, Run run, int64_t begin, int64_t n, int exponent, double p) {
  if (run.dtype == DType::kFloat) {
    return reduce_run(reduction, static_cast<const float*>(run.x) + begin, n, exponent, p);
  }
  if (run.dtype == DType::kDouble) {
    return reduce_run(reduction, static_cast<const double*>(run.x) + begin, n, exponent, p);
  }
  alignas(64) float buffer[kBufferSize];
  double total = 0;
  for (int64_t i = 0; i < n; i += kBufferSize) {
    const int64_t size = std::min(kBufferSize, n - i);
    step_kernels<float>().load[int(run.dtype)](static_cast<const char*>(run.x) + (begin + i) * size_of(run.dtype),
                                               buffer, size);
    total = combine(reduction, total, reduce_run(reduction, buffer, size, exponent, p));
  }
  return total;
}

// The norm of elements of which reduce(reduction, exponent) says what they add up to, as often as it takes.
template <class Reduce>
Norm norm_from(double p, Reduce&& reduce) {
  if (p == 2) {
    // The squares of floats, of whatever size, are far from the limits of double; those of doubles may not be.
    const double squares = reduce(Reduction::kSquares, 0);
    if (squares > 0x1p-900 && squares < 0x1p+1000) return {std::sqrt(squares), false};
  } else if (p == 1) {
    const double magnitudes = reduce(Reduction::kMagnitudes, 0);
    if (std::isfinite(magnitudes)) return {magnitudes, false};
  }
  const double largest = reduce(Reduction::kMax, 0);
  if (!std::isfinite(largest)) return {largest, true};
  if (largest == 0 || std::isinf(p)) return {largest, false};
  if (p == 1) return {INFINITY, false};
  const int exponent = std::ilogb(largest);
  if (p == 2) {
    // Where the power of two is beyond double, all elements are subnormal and 2^1000 brings them close enough to one.
    const double squares = reduce(Reduction::kScaledSquares, exponent);
    return {std::ldexp(std::sqrt(squares), -std::min(-exponent, 1000)), false};
  }
  return {std::ldexp(std::pow(reduce(Reduction::kPowers, exponent), 1 / p), exponent), false};
}

// So few elements are not worth waking a thread for: some 50 microseconds of work.
constexpr int64_t serial_elements(Reduction reduction) {
  return reduction == Reduction::kPowers ? 1024 : int64_t{1} << 18;
}

// run_of(row) is the memory of a row. The result depends on the chunks alone, not on threads.
template <class RunOf>
Norm norm_of(const ChunkList& work, double p, RunOf&& run_of) {
  std::vector<double> partial(size_t(work.chunk_count));
  return norm_from(p, [&](Reduction reduction, int exponent) {
    for_tasks(work, serial_elements(reduction), false, [&](int64_t task) {
      for (int64_t i = work.tasks[task]; i < work.tasks[task + 1]; ++i) {
        const Chunk& chunk = work.chunks[i];
        partial[size_t(i)] = reduce_chunk(reduction, run_of(chunk.row), chunk.begin, chunk.size, exponent, p);
      }
    });
    double total = 0;
    for (const double x : partial) total = combine(reduction, total, x);
    return total;
  });
}

}  // namespace ft
