// The sums of a gradient over rows, in an order that depends on its shape alone.
//
// Rows of few columns, or of a number that is not a multiple of a chunk, are taken several at a time as one long row,
// so that every chunk lies within a row and keeps its place in the next. A block owns a tile of the columns and walks
// down a strip of the rows; the last block of a tile adds its strips, and if rows were taken together the last block of
// all adds those. All of it happens within the kernel that computes the gradient.
#pragma once
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <numeric>

#include "cuda/act_chunk.cuh"
#include "cuda/block.cuh"
#include "cuda/launch.cuh"

namespace ft {

constexpr int kActThreads = 256;
constexpr int kTileChunks = 8;  // 128 bytes of a row in 16 bits: what the memory moves at once
constexpr int kTileColumns = kTileChunks * kChunk;
constexpr int kTileRows = kActThreads / kTileChunks;

// Which block sums what. No plan has tiles = 0.
struct ColumnPlan {
  int64_t width = 0;     // columns
  int64_t together = 1;  // rows that are taken as one
  int64_t row = 0;       // their columns
  int64_t rows = 0;
  int64_t strip = 0;  // rows of a strip
  int64_t strips = 0, tiles = 0;

  double* totals = nullptr;     // [sums][row] if rows are taken together
  void* partials = nullptr;     // [strips][sums][row] if there are several strips
  unsigned* tickets = nullptr;  // for each tile, and for all
  void* result = nullptr;       // [sums][width]
  size_t result_bytes = 0;

  static ColumnPlan of(int64_t numel, int64_t width) {
    constexpr int64_t kBlocks = 4096;  // several times what any device holds at once, to fill it to the end
    constexpr int64_t kMostStrips = 256, kLeastRows = 4 * kTileRows;
    ColumnPlan plan;
    if (numel == 0) return plan;
    const int64_t aligned = width / std::gcd<int64_t>(width, kChunk) * kChunk;
    plan.width = width;
    plan.row = aligned * std::max<int64_t>(kTileColumns / aligned, 1);
    plan.together = plan.row / width;
    plan.rows = (numel + plan.row - 1) / plan.row;
    plan.tiles = (plan.row + kTileColumns - 1) / kTileColumns;
    const int64_t wanted = std::min((kBlocks + plan.tiles - 1) / plan.tiles, kMostStrips);
    const int64_t fitting = std::max<int64_t>(plan.rows / kLeastRows, 1), strips = std::min(wanted, fitting);
    plan.strip = ((plan.rows + strips - 1) / strips + kTileRows - 1) / kTileRows * kTileRows;
    plan.strips = (plan.rows + plan.strip - 1) / plan.strip;
    return plan;
  }

  // That of a backward; none if it does not want sums.
  static ColumnPlan of(const ActLaunch& call, int64_t sums, int64_t wide_bytes) {
    if (call.dbias == nullptr) return ColumnPlan();
    ColumnPlan plan = of(call.numel, call.width);
    plan.take(call.workspace, sums, wide_bytes);
    plan.result = call.dbias;
    plan.result_bytes = size_t(sums * call.width * wide_bytes);
    return plan;
  }

  // Takes its memory from a workspace, and returns how many bytes it needs.
  int64_t take(void* workspace, int64_t sums, int64_t wide_bytes) {
    const int64_t total_bytes = together > 1 ? sums * row * int64_t(sizeof *totals) : 0;
    const int64_t partial_bytes = strips > 1 ? strips * sums * row * wide_bytes : 0;
    char* const memory = static_cast<char*>(workspace);
    if (memory != nullptr) {
      totals = reinterpret_cast<double*>(memory);
      partials = memory + total_bytes;
      tickets = reinterpret_cast<unsigned*>(memory + total_bytes + partial_bytes);
    }
    return total_bytes + partial_bytes + (tiles + 1) * int64_t(sizeof *tickets);
  }

  cudaError_t reset(cudaStream_t stream) const {
    if (strips == 1 && together == 1) return cudaSuccess;
    return cudaMemsetAsync(tickets, 0, size_t(tiles + 1) * sizeof *tickets, stream);
  }

  // Where a thread begins in a long row, its first row, and the end of its strip.
  struct Place {
    int64_t column, row, end_row;
  };
  __device__ __forceinline__ int64_t tile() const { return int64_t(blockIdx.x) % tiles; }
  __device__ __forceinline__ int64_t strip_index() const { return int64_t(blockIdx.x) / tiles; }
  __device__ __forceinline__ Place place() const {
    const int64_t top = strip_index() * strip, bottom = top + strip;
    return {tile() * kTileColumns + int64_t(threadIdx.x) % kTileChunks * kChunk,
            top + int64_t(threadIdx.x) / kTileChunks, bottom < rows ? bottom : rows};
  }
};

// Nothing is summed.
struct NoSums {
  template <class Wide>
  __device__ __forceinline__ void add(int, int, Wide) {}
  template <class Wide>
  __device__ __forceinline__ void add_one(int, int, Wide) {}
};

template <class Wide, int kSums>
struct SharedSums {
  // Of each thread for the elements of its chunks. The padding spreads what is read at once over the banks.
  Wide of_threads[kSums * kChunk][kActThreads + kTileChunks];
  double of_groups[kActThreads];
  int is_last;
};

// Sums of whole chunks are in registers; what comes element by element, in a loop, needs memory that can be indexed.
template <class Wide, int kSums>
class ColumnSums {
 public:
  __device__ __forceinline__ explicit ColumnSums(SharedSums<Wide, kSums>& shared) : shared_(shared) {
#pragma unroll
    for (int s = 0; s < kSums * kChunk; ++s) {
      of_chunks_[s] = Wide(0);
      shared_.of_threads[s][threadIdx.x] = Wide(0);
    }
  }

  __device__ __forceinline__ void add(int which, int k, Wide value) { of_chunks_[which * kChunk + k] += value; }
  __device__ __forceinline__ void add_one(int which, int k, Wide value) {
    shared_.of_threads[which * kChunk + k][threadIdx.x] += value;
  }

  // Called by all threads of all blocks.
  __device__ __forceinline__ void finish(const ColumnPlan& plan) {
#pragma unroll
    for (int s = 0; s < kSums * kChunk; ++s) shared_.of_threads[s][threadIdx.x] += of_chunks_[s];
    __syncthreads();
    add_threads(plan);
    if (plan.strips > 1) {
      if (!is_last_block(plan.tickets + plan.tile(), unsigned(plan.strips), &shared_.is_last)) return;
      add_strips(plan);
    }
    if (plan.together > 1) {
      if (is_last_block(plan.tickets + plan.tiles, unsigned(plan.tiles), &shared_.is_last)) add_rows(plan);
    }
  }

 private:
  static constexpr int kTile = kSums * kTileColumns;  // sums of a tile
  static constexpr int kGroups = kActThreads / kTile;
  static_assert(kGroups > 0 && kActThreads % kTile == 0);

  __device__ __forceinline__ static void put(const ColumnPlan& plan, int which, int64_t column, double total) {
    if (plan.together > 1) {
      plan.totals[which * plan.row + column] = total;
    } else {
      static_cast<Wide*>(plan.result)[which * plan.width + column] = Wide(total);
    }
  }

  __device__ __forceinline__ void add_threads(const ColumnPlan& plan) const {
    if (threadIdx.x >= kTile) return;
    const int place = int(threadIdx.x) % kTileChunks, k = int(threadIdx.x) / kTileChunks % kChunk;
    const int which = int(threadIdx.x) / kTileColumns;
    const int64_t column = plan.tile() * kTileColumns + place * kChunk + k;
    if (column >= plan.row) return;
    double total = 0;
    for (int y = 0; y < kTileRows; ++y)
      total += double(shared_.of_threads[which * kChunk + k][y * kTileChunks + place]);
    if (plan.strips > 1) {
      static_cast<Wide*>(plan.partials)[(plan.strip_index() * kSums + which) * plan.row + column] = Wide(total);
    } else {
      put(plan, which, column, total);
    }
  }

  // Each group of threads takes every kGroups-th strip.
  __device__ __forceinline__ void add_strips(const ColumnPlan& plan) {
    const int group = int(threadIdx.x) / kTile, which = int(threadIdx.x) % kTile / kTileColumns;
    const int64_t column = plan.tile() * kTileColumns + threadIdx.x % kTileColumns;
    double total = 0;
    if (column < plan.row) {
      const Wide* partials = static_cast<const Wide*>(plan.partials) + which * plan.row + column;
#pragma unroll 8
      for (int64_t s = group; s < plan.strips; s += kGroups) total += double(partials[s * kSums * plan.row]);
    }
    shared_.of_groups[threadIdx.x] = total;
    __syncthreads();
    if (group > 0 || column >= plan.row) return;
    for (int g = 1; g < kGroups; ++g) total += shared_.of_groups[g * kTile + threadIdx.x];
    put(plan, which, column, total);
  }

  __device__ __forceinline__ static void add_rows(const ColumnPlan& plan) {
    for (int64_t c = threadIdx.x; c < kSums * plan.width; c += kActThreads) {
      const double* totals = plan.totals + c / plan.width * plan.row + c % plan.width;
      double total = 0;
#pragma unroll 8
      for (int64_t r = 0; r < plan.together; ++r) total += totals[r * plan.width];
      static_cast<Wide*>(plan.result)[c] = Wide(total);
    }
  }

  SharedSums<Wide, kSums>& shared_;
  Wide of_chunks_[kSums * kChunk];
};

}  // namespace ft
