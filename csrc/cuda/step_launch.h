// The launchers of the norm, of clipping to it and of a step: over tables in the memory of the device, without torch.
// Device and stream are those of the caller.
#pragma once
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "plan/step_table.h"
#include "rules/platform.h"

namespace ft {

// What a block works on at a time, in elements: enough to pay for finding its row, few enough that all blocks end
// together.
constexpr int64_t kDeviceChunk = 8192;

// The number of chunks of a row. An empty one has one too: its steps are counted like those of the others.
FT_HD constexpr int64_t device_chunks(int64_t numel) {
  return numel > 0 ? (numel + kDeviceChunk - 1) / kDeviceChunk : 1;
}

// A row of a table that is only measured or scaled.
struct DeviceRun {
  void* x;
  int64_t numel;
  DType dtype;
};

template <class Row>
struct DeviceTable {
  const Row* rows;
  const int64_t* first_chunk;  // of each row, then the number of all chunks
  int64_t row_count, chunk_count;
};

// The norm of some chunks in a row: what has been added up, of elements that were multiplied by 2^-exponent before.
struct NormPartial {
  double value;
  int32_t exponent, nonfinite;
};

// The chunks of one partial, by the number of all chunks alone: the sum is the same whatever the blocks that add it up.
FT_HD constexpr int64_t chunks_per_partial(int64_t chunk_count) {
  constexpr int64_t kMaxPartials = int64_t{1} << 14;  // one block adds them up
  return (chunk_count + kMaxPartials - 1) / kMaxPartials;
}
FT_HD constexpr int64_t norm_partials(int64_t chunk_count) {
  return chunk_count > 0 ? (chunk_count + chunks_per_partial(chunk_count) - 1) / chunks_per_partial(chunk_count) : 0;
}

struct NormArgs {
  double norm_type = 2;
  bool has_double = false;          // whether any row is of doubles, whose squares may be beyond double
  NormPartial* partials = nullptr;  // norm_partials() of them; of the norms of rows one for each chunk
  unsigned* tickets = nullptr;      // one; of the norms of rows one for each. 0 before and after
  ScalarRef norm, nonfinite;        // outputs; of the norms of rows `norm` is the first of an array, and the only one
};

// What a step is told; see StepCall.
struct StepArgs {
  DeviceTable<StepRow> table;
  unsigned* pending;  // for each row: how many of its chunks have read its step count. 0 before and after
  unsigned* ticket;   // likewise 0
  unsigned* claimed;  // how often blocks have asked for another chunk. Likewise 0
  const double* hyper;
  int64_t hyper_columns;
  ScalarRef norm, nonfinite, inv_scale, found_inf;
  double max_norm;
  bool skip_nonfinite;
  ScalarRef grad_norm, clip_coef;  // outputs
  int64_t* skipped_steps;
};

}  // namespace ft

extern "C" {
cudaError_t ft_cuda_norm_of_runs(const ft::DeviceTable<ft::DeviceRun>* table, const ft::NormArgs* args,
                                 cudaStream_t stream);
// The same of the gradients of a step.
cudaError_t ft_cuda_norm_of_gradients(const ft::DeviceTable<ft::StepRow>* table, const ft::NormArgs* args,
                                      cudaStream_t stream);

// The norm of each run.
cudaError_t ft_cuda_tensor_norms(const ft::DeviceTable<ft::DeviceRun>* table, const ft::NormArgs* args,
                                 cudaStream_t stream);

// x *= clip_coefficient(norm, max_norm) where that is below 1.
cudaError_t ft_cuda_clip_scale(const ft::DeviceTable<ft::DeviceRun>* table, ft::ScalarRef norm, double max_norm,
                               cudaStream_t stream);

// rule: position in Updates.
cudaError_t ft_cuda_optim_step(int32_t rule, const ft::StepArgs* args, cudaStream_t stream);
}
