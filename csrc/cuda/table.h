// Tables of many tensors in the memory of the device: where their parts lie, and how they get there.
#pragma once
#include <cuda_runtime.h>

#include <cstring>

#include "cuda/step_launch.h"
#include "cuda/upload.h"

namespace ft {

// Parts of one block of memory, one behind the other. What is uploaded comes first.
class Packing {
 public:
  // The offset of a new part.
  int64_t add(int64_t bytes) {
    constexpr int64_t kAlignment = 16;
    const int64_t offset = bytes_;
    bytes_ += (bytes + kAlignment - 1) / kAlignment * kAlignment;
    return offset;
  }
  int64_t bytes() const { return bytes_; }

 private:
  int64_t bytes_ = 0;
};

// Where the parts of a table of rows are.
template <class Row>
struct TableLayout {
  int64_t row_count, chunk_count = 0, hyper_bytes;
  int64_t rows, hyper, first_chunk, counters, uploaded, partials, bytes;

  // What a step or a norm counts with, and behind it for each row its pending chunks. All are 0 when uploaded.
  enum Counter { kStepTicket, kNormTicket, kClaimed, kCounters };

  TableLayout(const Row* from, int64_t count, int64_t hyper_size)
      : row_count(count), hyper_bytes(hyper_size * int64_t(sizeof(double))) {
    for (int64_t i = 0; i < count; ++i) chunk_count += device_chunks(from[i].numel);
    Packing packing;
    rows = packing.add(count * int64_t(sizeof(Row)));
    hyper = packing.add(hyper_bytes);
    first_chunk = packing.add((count + 1) * int64_t(sizeof(int64_t)));
    counters = packing.add((kCounters + count) * int64_t(sizeof(unsigned)));
    uploaded = packing.bytes();
    partials = packing.add(norm_partials(chunk_count) * int64_t(sizeof(NormPartial)));
    bytes = packing.bytes();
  }

  DeviceTable<Row> table(char* memory) const {
    return {reinterpret_cast<const Row*>(memory + rows), reinterpret_cast<const int64_t*>(memory + first_chunk),
            row_count, chunk_count};
  }
  // The bytes there are if each chunk has a partial of its own.
  int64_t bytes_by_chunk() const { return partials + chunk_count * int64_t(sizeof(NormPartial)); }
  unsigned* counter(char* memory, Counter which) const {
    return reinterpret_cast<unsigned*>(memory + counters) + which;
  }
  unsigned* pending(char* memory) const { return counter(memory, kCounters); }
  NormPartial* partial(char* memory) const { return reinterpret_cast<NormPartial*>(memory + partials); }

  // Writes what is uploaded: rows, hyperparameters (of the host; null for none) and counters.
  void write(const Row* from, const double* hyper_from, char* to) const {
    if (row_count > 0) std::memcpy(to + rows, from, size_t(row_count) * sizeof(Row));
    if (hyper_from != nullptr) std::memcpy(to + hyper, hyper_from, size_t(hyper_bytes));
    int64_t* const first = reinterpret_cast<int64_t*>(to + first_chunk);
    first[0] = 0;
    for (int64_t i = 0; i < row_count; ++i) first[i + 1] = first[i] + device_chunks(from[i].numel);
    std::memset(to + counters, 0, size_t(uploaded - counters));
  }

  // Brings that to the device, in one copy.
  cudaError_t upload(const Row* from, const double* hyper_from, char* memory, cudaStream_t stream) const {
    return ft::upload(memory, uploaded, stream, [&](char* to) { write(from, hyper_from, to); });
  }
};

// The hyperparameters that go to the device with the table, null if they are there, and how many.
inline const double* host_hyper(const StepCall& call) { return call.hyper_here ? nullptr : call.hyper; }
inline int64_t host_hyper_size(const StepCall& call) {
  return call.hyper_here ? 0 : call.hyper_rows * call.hyper_columns;
}

// What a step is told of a call whose table is in `memory`.
inline StepArgs step_args(const StepCall& call, const TableLayout<StepRow>& layout, char* memory) {
  StepArgs args = {};
  args.table = layout.table(memory);
  args.pending = layout.pending(memory);
  args.ticket = layout.counter(memory, layout.kStepTicket);
  args.claimed = layout.counter(memory, layout.kClaimed);
  args.hyper = call.hyper_here ? call.hyper : reinterpret_cast<const double*>(memory + layout.hyper);
  args.hyper_columns = call.hyper_columns;
  args.norm = call.norm;
  args.nonfinite = call.nonfinite;
  args.inv_scale = call.inv_scale;
  args.found_inf = call.found_inf;
  args.max_norm = call.max_norm;
  args.skip_nonfinite = call.skip_nonfinite;
  args.grad_norm = call.grad_norm;
  args.clip_coef = call.clip_coef;
  args.skipped_steps = call.skipped_steps;
  return args;
}

}  // namespace ft
