// How threads walk over the chunks of a tensor, for whatever is done there.
//
// An operation `Op` has
//   Elements, Inputs     the type of the elements; a chunk of everything that is worth loading ahead
//   kColumns             whether it asks for columns. Then all whole chunks of a thread are in the same ones
//   Columns              what it has to know of those of a thread: Columns(op, column)
//   load(start, Columns) Inputs of a whole chunk
//   whole(start, Inputs, Keep, Columns, sums)       what is done with a whole chunk
//   one(i, column, kept, k, sums)                   and with one element, the k-th of its chunk
//   kSums                how many gradients it may have to sum over rows: 0, 1, or 2 if it is gated
//   kTake                how many chunks a thread takes at once, so that what they have in common is done once: 1 or 2;
//                        0 if it goes element by element, as doubles do: that costs less than they do themselves
//   kBlocks              how many blocks a processor shall hold: it says how many registers there are
// It gives `sums` each value to be summed: by add(which, k, value) in a whole chunk, else by add_one.
#pragma once
#include <numeric>

#include "cuda/act_chunk.cuh"
#include "cuda/act_columns.cuh"

namespace ft {

// What a kernel walks over, besides what its operation knows. What can be computed beforehand is.
struct Walk {
  int64_t numel;
  int64_t vectors_end;  // chunks that start before it are whole, and all memory is aligned to move them at once
  Drop drop;
  // Between the chunks that a thread takes at once, if they are of the same columns, and from those to the next.
  int64_t near = 0, step = 0;

  int64_t width;  // 0 if nobody needs columns
  double inverse_width;

  Walk(const ActLaunch& call, bool vectors, bool needs_columns, bool may_draw = true)
      : numel(call.numel),
        vectors_end(vectors && (!needs_columns || call.width % kChunk == 0) ? numel - (kChunk - 1) : 0),
        drop(call, may_draw),
        width(needs_columns ? call.width : 0),
        inverse_width(needs_columns ? 1.0 / double(width) : 0) {}

  // start % width by a reciprocal, as a division would be a call. The quotient may be off by one; for that it must be
  // below 2^50.
  __device__ __forceinline__ int64_t column_of(int64_t start) const {
    if (width == 0) return 0;
    const int64_t column = start - int64_t(double(start) * inverse_width) * width;
    return column < 0 ? column + width : column >= width ? column - width : column;
  }
};

// Of operations that ask for none.
struct NoColumns {
  template <class Op>
  __device__ __forceinline__ NoColumns(const Op&, int64_t) {}
};

template <class Op>
__device__ __forceinline__ typename Op::Columns columns_at(const Op& op, const Walk& walk, int64_t start) {
  return typename Op::Columns(op, Op::kColumns ? walk.column_of(start) : 0);
}

// How many chunks are between a thread's next two steps.
template <class Op>
constexpr int64_t kChunksOfStep = Op::kTake > 1 ? Op::kTake : 1;

// A chunk element by element.
template <class Op, class Sums>
__device__ __forceinline__ void take_elements(const Op& op, const Walk& walk, int64_t start, const Keep& keep,
                                              Sums& sums) {
  const unsigned kept = keep.bits();
  const int64_t left = walk.numel - start;
  int64_t column = walk.column_of(start);
#pragma unroll 1
  for (int k = 0; k < (left < kChunk ? int(left) : kChunk); ++k) {
    op.one(start + k, column, (kept >> k & 1) != 0, k, sums);
    column = column + 1 == walk.width ? 0 : column + 1;
  }
}

// How far a thread's chunks of one step are from each other where no columns want them elsewhere.
constexpr int64_t kFlatNear = kActThreads * kChunk;

template <class Op>
__device__ __forceinline__ int64_t near_of(const Walk& walk) {
  return Op::kColumns ? walk.near : kFlatNear;
}

// Whole chunks, kTake at a step, from `start` on. What is next is loaded before this is computed: the memory is never
// idle. The last step loads its own chunks again: loads that always happen need no copies of what was there before.
template <int kTake, class Op, class Sums>
__device__ __forceinline__ int64_t take_chunks(const Op& op, const Walk& walk, int64_t start, int64_t vectors_end,
                                               const Masks<typename Op::Elements>& masks, Sums& sums) {
  const int64_t near = near_of<Op>(walk), end = vectors_end - (kTake - 1) * near;
  if (start >= end) return start;
  const auto columns = columns_at(op, walk, start);
  typename Op::Inputs next[kTake];
#pragma unroll
  for (int j = 0; j < kTake; ++j) next[j] = op.load(start + j * near, columns);
  Keep keep(walk.drop);
  bool more;
  do {
    const int64_t after = start + walk.step;
    more = after < end;
    typename Op::Inputs inputs[kTake];
#pragma unroll
    for (int j = 0; j < kTake; ++j) {
      inputs[j] = next[j];
      next[j] = op.load((more ? after : start) + j * near, columns);
    }
#pragma unroll
    for (int j = 0; j < kTake; ++j) {
      const int64_t here = start + j * near;
      if (masks.draws) masks.draw(here, keep);
      op.whole(here, inputs[j], keep, columns, sums);
    }
    start = after;
  } while (more);
  return start;
}

// From `start` to before `end`; whole chunks to before `vectors_end`.
template <class Op, class Sums>
__device__ __forceinline__ void follow(const Op& op, const Walk& walk, int64_t start, int64_t vectors_end, int64_t end,
                                       Sums& sums) {
  constexpr int kTake = Op::kTake;
  const Masks<typename Op::Elements> masks(walk.drop);
  if constexpr (kTake > 0) start = take_chunks<kTake>(op, walk, start, vectors_end, masks, sums);
  for (; start < end; start += walk.step) {
    for (int j = 0; j < kChunksOfStep<Op>; ++j) {
      const int64_t here = start + j * near_of<Op>(walk);
      if (here >= end) break;
      Keep keep(walk.drop);
      if (masks.draws) masks.draw(here, keep);
      if constexpr (kTake > 1) {
        if (here < vectors_end) {
          const auto columns = columns_at(op, walk, here);
          op.whole(here, op.load(here, columns), keep, columns, sums);
          continue;
        }
      }
      take_elements(op, walk, here, keep, sums);
    }
  }
}

template <class Op>
__global__ void __launch_bounds__(kActThreads, Op::kBlocks)
    act_kernel(const Op op, const Walk walk, const ColumnPlan plan) {
  constexpr int64_t kBlockChunks = kActThreads * (Op::kColumns ? 1 : kChunksOfStep<Op>);
  int64_t start = (int64_t(blockIdx.x) * kBlockChunks + threadIdx.x) * kChunk;
  int64_t vectors_end = walk.vectors_end, end = walk.numel;
  if constexpr (Op::kSums == 0) {
    NoSums none;
    follow(op, walk, start, vectors_end, end, none);
  } else {
    using Wide = WideOf<typename Op::Elements>;
    __shared__ SharedSums<Wide, Op::kSums> shared;
    ColumnSums<Wide, Op::kSums> sums(shared);
    if (plan.tiles > 0) {  // down a tile of columns, to the end of a strip of rows
      const ColumnPlan::Place place = plan.place();
      const int64_t strip_end = place.column < plan.row ? place.end_row * plan.row : 0;
      start = place.row * plan.row + place.column;
      vectors_end = vectors_end < strip_end ? vectors_end : strip_end;
      end = end < strip_end ? end : strip_end;
    }
    follow(op, walk, start, vectors_end, end, sums);
    if (plan.tiles > 0) sums.finish(plan);
  }
}

// More blocks than are resident at once: with no more, each has its share from the beginning, and processors that are
// slower than others, by where they lie, come last. But each thread has a few steps at least, if there are so many:
// with one it waits for its first data, and for the state of the dropout, with nothing else to do, and to begin costs
// it a quarter of a step. Of gelu, p 0.1, 16384 x 16384 bf16, an H200 took 316 us with one step for each thread, 304
// with two, 290 with four and 286 with eight; without dropout, where eight are too many, 271, 267, 271 and 277. On an
// H100 one block for each that is resident had 0.88 of the bandwidth of a copy, 8 had 0.96 and 64 had 0.98.
constexpr int64_t kWaves = 64, kLeastSteps = 4;

// Blocks of which one turn is a whole number of rows, so that the next finds the same columns; or all that there are
// chunks for, so that one turn is all. It comes to that where a row is long and has few factors of two.
inline int64_t blocks_of_rows(int64_t blocks, const Walk& walk) {
  const int64_t unit = walk.width / std::gcd(walk.width, kFlatNear);
  const int64_t all = (walk.numel + kFlatNear - 1) / kFlatNear;
  return std::min((blocks + unit - 1) / unit * unit, all);
}

template <class Op>
cudaError_t launch_act(const Op& op, Walk walk, const ColumnPlan& plan, cudaStream_t stream) {
  if (walk.numel == 0) {
    return plan.result_bytes > 0 ? cudaMemsetAsync(plan.result, 0, plan.result_bytes, stream) : cudaSuccess;
  }
  int64_t blocks = 0;
  if (plan.tiles > 0) {
    blocks = plan.tiles * plan.strips;
    walk.near = kTileRows * plan.row;
    walk.step = kChunksOfStep<Op> * walk.near;
    if (const cudaError_t error = plan.reset(stream)) return error;
  } else {
    constexpr int64_t kBlockElements = kChunksOfStep<Op> * kFlatNear;
    if (const cudaError_t error = resident_blocks<act_kernel<Op>>(kActThreads, &blocks)) return error;
    const int64_t steps = (walk.numel + kBlockElements - 1) / kBlockElements;
    blocks = std::min({steps, blocks * kWaves, std::max(blocks, steps / kLeastSteps)});
    if (Op::kTake > 0 && walk.width > 0 && walk.vectors_end > 0) blocks = blocks_of_rows(blocks, walk);
    if (Op::kColumns) walk.near = blocks * kFlatNear;
    walk.step = blocks * kBlockElements;
  }
  return launch(act_kernel<Op>, blocks, kActThreads, stream, op, walk, plan);
}

}  // namespace ft
