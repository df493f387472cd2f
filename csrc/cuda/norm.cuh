// The norm of all rows of a table as one vector, or of each row, by one kernel. Which thread adds what up in which
// order depends on the lengths of the rows alone: not on the blocks there are, on where the rows lie, or on who is
// first.
#pragma once
#include <cmath>
#include <type_traits>

#include "cuda/chunks.cuh"
#include "rules/platform.h"

namespace ft {

// Sums are in double: the squares of floats, of whatever size, are far from its limits, so that they and magnitudes are
// added up as they are. What may leave the range of double is scaled by the power of two of the largest element first.
enum class Measure { kMagnitudes, kSquares, kLargest, kScaledPowers };

constexpr int kNothing = -(1 << 20);  // the exponent of no elements, or of zeros
constexpr int kLanes = 8;             // partial sums of a thread: elements of its widest vector

// Of the magnitudes of two numbers. Those are ordered as their bits are, with NaN above infinity. The signs are taken
// off the bits: a GPU's fabs leaves that of a NaN, which would be below all others then.
__device__ __forceinline__ double larger(double a, double b) {
  constexpr long long kMagnitude = 0x7fffffffffffffff;
  const long long x = __double_as_longlong(a) & kMagnitude, y = __double_as_longlong(b) & kMagnitude;
  return __longlong_as_double(x > y ? x : y);
}

template <Measure kMeasure>
struct Term {
  double norm_type, scale;

  // Adds an element to a lane. That of a zero leaves it as it is.
  __device__ __forceinline__ double operator()(double lane, double x) const {
    if (kMeasure == Measure::kMagnitudes) return lane + ::fabs(x);
    if (kMeasure == Measure::kSquares) return ::fma(x, x, lane);
    if (kMeasure == Measure::kLargest) return larger(lane, x);
    const double y = ::fabs(x) * scale;
    return lane + (norm_type == 2 ? y * y : norm_type == 1 ? y : ::pow(y, norm_type));
  }
};

// Both orders give the same bits.
template <Measure kMeasure>
__device__ __forceinline__ double combine(double a, double b) {
  return kMeasure == Measure::kLargest ? larger(a, b) : a + b;
}

__device__ __forceinline__ DeviceRun run_of(const DeviceRun& row) { return row; }
__device__ __forceinline__ DeviceRun run_of(const StepRow& row) {
  return {const_cast<void*>(row.g), row.numel, row.g_dtype};
}

// Each thread takes vectors of neighbours, also where they are not aligned: sums do not depend on where rows lie.
template <class T, class F>
__device__ __forceinline__ void add_piece(const T* x, int64_t size, const F& term, double (&lanes)[kLanes]) {
  constexpr int N = kVectorBytes / int(sizeof(T)), kStride = kThreads * N;
  const bool aligned = is_aligned_to(x, kVectorBytes);
  const int n = int(size);
  if (aligned && n == kDeviceChunk) {  // the usual case: several loads are under way at once
#pragma unroll 4
    for (int k = 0; k < int(kDeviceChunk) / kStride; ++k) {
      double v[N];
      load_vector<N>(x + k * kStride + int(threadIdx.x) * N, v);
#pragma unroll
      for (int j = 0; j < N; ++j) lanes[j] = term(lanes[j], v[j]);
    }
    return;
  }
#pragma unroll 1
  for (int i = int(threadIdx.x) * N; i < n; i += kStride) {
    double v[N];
    if (aligned && i + N <= n) {
      load_vector<N>(x + i, v);
    } else {
#pragma unroll
      for (int j = 0; j < N; ++j) v[j] = i + j < n ? widen<double>(x[i + j]) : 0.0;
    }
#pragma unroll
    for (int j = 0; j < N; ++j) lanes[j] = term(lanes[j], v[j]);
  }
}

// The value of chunks first..last-1, for every thread.
template <Measure kMeasure, class Row>
__device__ __forceinline__ double measure(const DeviceTable<Row>& table, int64_t first, int64_t last,
                                          const Term<kMeasure>& term, double* scratch) {
  double lanes[kLanes] = {};
  for (int64_t chunk = first; chunk < last; ++chunk) {
    const Piece piece = find_piece(table, chunk);
    const DeviceRun run = run_of(table.rows[piece.row]);
    switch (run.dtype) {
      case DType::kFloat:
        add_piece(in_global(static_cast<const float*>(run.x)) + piece.begin, piece.size, term, lanes);
        break;
      case DType::kDouble:
        add_piece(in_global(static_cast<const double*>(run.x)) + piece.begin, piece.size, term, lanes);
        break;
      case DType::kHalf:
        add_piece(in_global(static_cast<const __half*>(run.x)) + piece.begin, piece.size, term, lanes);
        break;
      case DType::kBFloat16:
        add_piece(in_global(static_cast<const __nv_bfloat16*>(run.x)) + piece.begin, piece.size, term, lanes);
        break;
    }
  }
  double total = lanes[0];
#pragma unroll
  for (int j = 1; j < kLanes; ++j) total = combine<kMeasure>(total, lanes[j]);
  return reduce_block(total, scratch, [](double a, double b) { return combine<kMeasure>(a, b); });
}

template <Measure kMeasure, class Row>
__device__ __forceinline__ NormPartial partial_of(const DeviceTable<Row>& table, int64_t first, int64_t last,
                                                  double norm_type, double* scratch) {
  if (kMeasure != Measure::kScaledPowers) {
    const double value = measure(table, first, last, Term<kMeasure>{norm_type, 1}, scratch);
    return {value, 0, value - value != 0};
  }
  const double largest = measure(table, first, last, Term<Measure::kLargest>{norm_type, 1}, scratch);
  if (largest - largest != 0) return {largest, 0, 1};
  if (largest == 0) return {0, kNothing, 0};
  // Where the power of two is beyond double, all elements are subnormal and 2^1000 brings them close enough to one.
  const int exponent = ::ilogb(largest) > -1000 ? ::ilogb(largest) : -1000;
  const Term<Measure::kScaledPowers> term{norm_type, ::ldexp(1.0, -exponent)};
  return {measure(table, first, last, term, scratch), exponent, 0};
}

struct NormResult {
  double norm, nonfinite;
};

// By the threads of one block, for its first: the norm from partials.
template <Measure kMeasure>
__device__ __forceinline__ NormResult combine_partials(const NormPartial* partials, int64_t count, double p,
                                                       double* scratch) {
  double exponent = kNothing, nonfinite = 0, total = 0;
  for (int64_t k = threadIdx.x; k < count; k += kThreads) {
    const NormPartial part = partials[k];
    nonfinite = part.nonfinite ? 1 : nonfinite;
    if (!part.nonfinite && part.exponent > exponent) exponent = part.exponent;
  }
  exponent = reduce_block(exponent, scratch, [](double a, double b) { return a > b ? a : b; });
  nonfinite = reduce_block(nonfinite, scratch, [](double a, double b) { return a > b ? a : b; });
  if (exponent == kNothing) exponent = 0;
  for (int64_t k = threadIdx.x; k < count; k += kThreads) {
    const NormPartial part = partials[k];
    double value = part.value;
    if (kMeasure == Measure::kScaledPowers && !part.nonfinite) value *= ::exp2(p * (part.exponent - exponent));
    total = combine<kMeasure>(total, value);
  }
  total = reduce_block(total, scratch, [](double a, double b) { return combine<kMeasure>(a, b); });
  if (threadIdx.x != 0) return {};
  const double root = kMeasure == Measure::kLargest || p == 1 ? total : p == 2 ? ::sqrt(total) : ::pow(total, 1 / p);
  return {::ldexp(root, int(exponent)), nonfinite};
}

// Of so many blocks each thread has the registers that it needs.
template <Measure kMeasure>
constexpr int kNormBlocks = kMeasure == Measure::kScaledPowers ? 2 : 4;

template <Measure kMeasure, class Row>
__global__ void __launch_bounds__(kThreads, kNormBlocks<kMeasure>) norm_kernel(DeviceTable<Row> table, NormArgs args) {
  __shared__ double scratch[kThreads / kWarp];
  __shared__ int flag;
  const int64_t each = chunks_per_partial(table.chunk_count), count = norm_partials(table.chunk_count);
  for (int64_t k = blockIdx.x; k < count; k += gridDim.x) {
    const int64_t first = k * each, last = first + each < table.chunk_count ? first + each : table.chunk_count;
    const NormPartial partial = partial_of<kMeasure>(table, first, last, args.norm_type, scratch);
    if (threadIdx.x == 0) args.partials[k] = partial;
  }
  if (!is_last_block(args.tickets, gridDim.x, &flag)) return;
  const NormResult result = combine_partials<kMeasure>(args.partials, count, args.norm_type, scratch);
  if (threadIdx.x != 0) return;
  write(args.norm, result.norm);
  write(args.nonfinite, result.nonfinite);
}

template <Measure kMeasure>
constexpr int kTensorNormsBlocks = kMeasure == Measure::kLargest ? 3 : kNormBlocks<kMeasure>;

// Each chunk is a partial here. A block says of a row that it is done once it has no more chunks of it, and the block
// that is the last to say so combines those of the row.
template <Measure kMeasure, class Row>
__global__ void __launch_bounds__(kThreads, kTensorNormsBlocks<kMeasure>)
    tensor_norms_kernel(DeviceTable<Row> table, NormArgs args) {
  __shared__ double scratch[kThreads / kWarp];
  __shared__ int flag;
  for (int64_t chunk = blockIdx.x; chunk < table.chunk_count; chunk += gridDim.x) {
    const NormPartial partial = partial_of<kMeasure>(table, chunk, chunk + 1, args.norm_type, scratch);
    if (threadIdx.x == 0) args.partials[chunk] = partial;
    const int64_t row = find_piece(table, chunk).row, first = table.first_chunk[row], end = table.first_chunk[row + 1];
    if (chunk + gridDim.x < end) continue;
    const unsigned mine = unsigned((chunk - first) / gridDim.x) + 1;
    if (!is_last_block(args.tickets + row, unsigned(end - first), &flag, mine)) continue;
    const NormResult result = combine_partials<kMeasure>(args.partials + first, end - first, args.norm_type, scratch);
    if (threadIdx.x == 0) store<double>(args.norm.data, args.norm.dtype, row, result.norm);
  }
}

// f(Measure) of the measure that serves, as a constant.
template <class F>
cudaError_t with_measure(const NormArgs& args, F&& f) {
  if (std::isinf(args.norm_type)) return f(std::integral_constant<Measure, Measure::kLargest>{});
  if (args.norm_type == 2 && !args.has_double) return f(std::integral_constant<Measure, Measure::kSquares>{});
  if (args.norm_type == 1 && !args.has_double) return f(std::integral_constant<Measure, Measure::kMagnitudes>{});
  return f(std::integral_constant<Measure, Measure::kScaledPowers>{});
}

}  // namespace ft
