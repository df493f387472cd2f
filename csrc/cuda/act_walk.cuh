// How threads walk over the chunks of a tensor, for whatever is done there.
//
// An operation `Op` has
//   Elements, Inputs     the type of the elements; a chunk of everything that is worth loading ahead
//   load(At)             Inputs of a whole chunk
//   whole(At, Inputs, Keep, sums)       what is done with a whole chunk
//   one(i, column, kept, k, sums)       and with one element, the k-th of its chunk
//   kSums                how many gradients it may have to sum over rows: 0, 1, or 2 if it is gated
//   kTake                how many chunks a thread takes at once, so that what they have in common is done once: 1 or 2;
//                        0 if it goes element by element, as doubles do: that costs less than they do themselves
//   kBlocks              how many blocks a processor shall hold: it says how many registers there are
// It gives `sums` each value to be summed: by add(which, k, value) in a whole chunk, else by add_one.
#pragma once
#include "cuda/act_chunk.cuh"
#include "cuda/act_columns.cuh"

namespace ft {

// A chunk: its first element, and its column in chunks, which counts only where somebody needs it.
struct At {
  int64_t start;
  int32_t column_chunk;

  __device__ __forceinline__ int64_t column() const { return int64_t(column_chunk) * kChunk; }
};

// What a kernel walks over, besides what its operation knows. What can be computed beforehand is.
struct Walk {
  int64_t numel;
  int64_t vectors_end;  // chunks that start before it are whole, and all memory is aligned to move them at once
  Drop drop;

  int64_t width;  // 0 if nobody needs columns
  double inverse_width;
  int64_t near = 0, step = 0;  // between the chunks that a thread takes at once, and from those to the next
  // The same for columns, less the width, which is then added to what is negative; all in chunks.
  int32_t width_chunks = 0, column_near = 0, column_step = 0;

  Walk(const ActLaunch& call, bool vectors, bool needs_columns, bool may_draw = true)
      : numel(call.numel),
        vectors_end(0),
        drop(call, may_draw),
        width(needs_columns ? call.width : 0),
        inverse_width(needs_columns ? 1.0 / double(width) : 0) {
    const int64_t chunks = width / kChunk;
    if (!vectors || width % kChunk != 0 || chunks > kMostChunks) return;
    vectors_end = numel - (kChunk - 1);
    width_chunks = int32_t(chunks);
  }

  void set_steps(int64_t to_near, int64_t to_next) {
    near = to_near, step = to_next;
    column_near = column_difference(near);
    column_step = column_difference(step);
  }

  __device__ __forceinline__ At moved(At at, int64_t elements, int32_t columns) const {
    at.start += elements;
    at.column_chunk += columns;
    if (at.column_chunk < 0) at.column_chunk += width_chunks;
    return at;
  }

  // start % width by a reciprocal, as a division would be a call. The quotient may be off by one; for that it must be
  // below 2^50.
  __device__ __forceinline__ int64_t column_of(int64_t start) const {
    if (width == 0) return 0;
    const int64_t column = start - int64_t(double(start) * inverse_width) * width;
    return column < 0 ? column + width : column >= width ? column - width : column;
  }

 private:
  static constexpr int64_t kMostChunks = INT32_MAX / 2;

  int32_t column_difference(int64_t elements) const {
    return width_chunks > 0 ? int32_t(elements / kChunk % width_chunks) - width_chunks : 0;
  }
};

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

// How far a thread's chunks of one step are from each other where no sums want them elsewhere.
constexpr int64_t kFlatNear = kActThreads * kChunk;

template <class Op>
__device__ __forceinline__ int64_t near_of(const Walk& walk) {
  return Op::kSums == 0 ? kFlatNear : walk.near;
}

// Whole chunks, kTake at a step, from `at` on. What is next is loaded before this is computed: the memory is never
// idle. The last step loads its own chunks again: loads that always happen need no copies of what was there before.
template <int kTake, class Op, class Sums>
__device__ __forceinline__ At take_chunks(const Op& op, const Walk& walk, At at, int64_t vectors_end,
                                          const Masks<typename Op::Elements>& masks, Sums& sums) {
  const int64_t near = near_of<Op>(walk), end = vectors_end - (kTake - 1) * near;
  if (at.start >= end) return at;
  const auto chunk = [&](At first, int j) { return j == 0 ? first : walk.moved(first, near, walk.column_near); };
  static_assert(kTake <= 2);
  typename Op::Inputs next[kTake];
#pragma unroll
  for (int j = 0; j < kTake; ++j) next[j] = op.load(chunk(at, j));
  Keep keep(walk.drop);
  bool more;
  do {
    const At after = walk.moved(at, walk.step, walk.column_step);
    more = after.start < end;
    typename Op::Inputs inputs[kTake];
#pragma unroll
    for (int j = 0; j < kTake; ++j) {
      inputs[j] = next[j];
      next[j] = op.load(chunk(more ? after : at, j));
    }
#pragma unroll
    for (int j = 0; j < kTake; ++j) {
      const At here = chunk(at, j);
      if (masks.draws) masks.draw(here.start, keep);
      op.whole(here, inputs[j], keep, sums);
    }
    at = after;
  } while (more);
  return at;
}

// From `start` to before `end`; whole chunks to before `vectors_end`.
template <class Op, class Sums>
__device__ __forceinline__ void follow(const Op& op, const Walk& walk, int64_t start, int64_t vectors_end, int64_t end,
                                       Sums& sums) {
  constexpr int kTake = Op::kTake;
  const Masks<typename Op::Elements> masks(walk.drop);
  At at = {start, int32_t(walk.column_of(start) / kChunk)};
  if constexpr (kTake > 0) at = take_chunks<kTake>(op, walk, at, vectors_end, masks, sums);
  for (; at.start < end; at = walk.moved(at, walk.step, walk.column_step)) {
    for (int j = 0; j < kChunksOfStep<Op>; ++j) {
      const At here = j == 0 ? at : walk.moved(at, near_of<Op>(walk), walk.column_near);
      if (here.start >= end) break;
      Keep keep(walk.drop);
      if (masks.draws) masks.draw(here.start, keep);
      if constexpr (kTake > 1) {
        if (here.start < vectors_end) {
          op.whole(here, op.load(here), keep, sums);
          continue;
        }
      }
      take_elements(op, walk, here.start, keep, sums);
    }
  }
}

template <class Op>
__global__ void __launch_bounds__(kActThreads, Op::kBlocks)
    act_kernel(const Op op, const Walk walk, const ColumnPlan plan) {
  const int64_t flat_start = (int64_t(blockIdx.x) * kActThreads * kChunksOfStep<Op> + threadIdx.x) * kChunk;
  if constexpr (Op::kSums == 0) {
    NoSums none;
    follow(op, walk, flat_start, walk.vectors_end, walk.numel, none);
  } else {
    using Wide = WideOf<typename Op::Elements>;
    __shared__ SharedSums<Wide, Op::kSums> shared;
    ColumnSums<Wide, Op::kSums> sums(shared);
    if (plan.tiles == 0) {
      follow(op, walk, flat_start, walk.vectors_end, walk.numel, sums);
      return;
    }
    const ColumnPlan::Place place = plan.place();
    if (place.column < plan.row) {
      const int64_t strip_end = place.end_row * plan.row;
      const int64_t vectors_end = walk.vectors_end < strip_end ? walk.vectors_end : strip_end;
      const int64_t end = walk.numel < strip_end ? walk.numel : strip_end;
      follow(op, walk, place.row * plan.row + place.column, vectors_end, end, sums);
    }
    sums.finish(plan);
  }
}

// More blocks than are resident at once: with no more, each has its share from the beginning, and processors that are
// slower than others, by where they lie, come last. But each thread has a few steps at least, if there are so many:
// with one it waits for its first data, and for the state of the dropout, with nothing else to do. Of the bandwidth of
// a copy an H100 reached 0.88 with one block for each that is resident, 0.96 with 8, which was 16 steps each, 0.98 with
// 64, two steps each, and 0.90 with one step each (gelu, p 0.1, 16384 x 16384 bf16). Four are not measured: to begin
// costs a thread a quarter of a step, which counts where instructions bind it, as on an H200.
constexpr int64_t kWaves = 64, kLeastSteps = 4;

template <class Op>
cudaError_t launch_act(const Op& op, Walk walk, const ColumnPlan& plan, cudaStream_t stream) {
  if (walk.numel == 0) {
    return plan.result_bytes > 0 ? cudaMemsetAsync(plan.result, 0, plan.result_bytes, stream) : cudaSuccess;
  }
  int64_t blocks = 0;
  if (plan.tiles > 0) {
    blocks = plan.tiles * plan.strips;
    walk.set_steps(kTileRows * plan.row, kChunksOfStep<Op> * kTileRows * plan.row);
    if (const cudaError_t error = plan.reset(stream)) return error;
  } else {
    constexpr int64_t kBlockElements = kChunksOfStep<Op> * kFlatNear;
    if (const cudaError_t error = resident_blocks<act_kernel<Op>>(kActThreads, &blocks)) return error;
    const int64_t steps = (walk.numel + kBlockElements - 1) / kBlockElements;
    blocks = std::min({steps, blocks * kWaves, std::max(blocks, steps / kLeastSteps)});
    walk.set_steps(kFlatNear, blocks * kBlockElements);
  }
  return launch(act_kernel<Op>, blocks, kActThreads, stream, op, walk, plan);
}

}  // namespace ft
