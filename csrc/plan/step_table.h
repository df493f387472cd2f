// What a multi-tensor step works on: plain data, shared by the planner, the operators and the launchers.
#pragma once
#include <cstddef>
#include <cstdint>

#include "plan/chunks.h"
#include "plan/dtype.h"
#include "plan/sight.h"

namespace ft {

constexpr int kMaxStates = 3;  // of any rule

enum class CounterType : int32_t { kFloat32, kFloat64, kInt64 };
constexpr int64_t size_of(CounterType type) { return type == CounterType::kFloat32 ? 4 : 8; }

// One tensor with its gradient and states. All of p, g and states have the same dense layout and so are walked
// 0..numel-1.
struct StepRow {
  void* p;
  const void* g;
  void* state[kMaxStates];
  void* step;  // 0-dim: steps done so far
  int64_t numel;
  int32_t group;  // row of the hyperparameter table
  DType p_dtype, g_dtype, state_dtype[kMaxStates];
  CounterType step_type;
};

// A run of elements that is measured.
struct Run {
  const void* x;
  int64_t numel;
  DType dtype;
};

// A scalar somewhere in memory: an input or output of a step. `data` is null where it is absent.
struct ScalarRef {
  void* data = nullptr;
  DType dtype = DType::kFloat;
};

// One call of a step. Everything has been checked: the launchers trust it.
struct StepCall {
  const StepRow* rows;
  int64_t row_count;
  int32_t device;       // index of that of the rows, where there may be several of their kind
  ChunkList work;       // of launchers on the CPU
  int32_t rule;         // position in Updates
  bool hyper_here;      // whether `hyper` is in the memory of the device of the rows, and not of the host
  const double* hyper;  // hyper_rows rows
  int64_t hyper_rows, hyper_columns;

  // The norm of the gradients before unscaling: computed here if norm_type > 0, else taken from `norm` where present.
  double norm_type = 0;
  ScalarRef norm, nonfinite;
  ScalarRef inv_scale, found_inf;
  double max_norm = -1;  // < 0: no clipping
  bool skip_nonfinite = false;

  ScalarRef grad_norm, clip_coef, nonfinite_out;
  int64_t* skipped_steps = nullptr;
};

// What the functions of a library that steps tables return; see plan/library.h.
enum StepStatus : int { kStepped = 0, kFailed = 1, kStoodAside = 2 };

constexpr size_t kFunctions = 3;  // to be raised where one of those functions changes, comes or goes

constexpr size_t kLayout[] = {kFunctions,
                              sizeof(StepCall),
                              sizeof(StepRow),
                              sizeof(Chunk),
                              sizeof(ScalarRef),
                              sizeof(Sight),
                              offsetof(Sight, data),
                              offsetof(Sight, shape),
                              offsetof(Sight, strides),
                              offsetof(Sight, dims),
                              offsetof(Sight, dtype),
                              offsetof(Sight, device_type),
                              offsetof(Sight, device_index),
                              offsetof(Chunk, row),
                              offsetof(Chunk, begin),
                              offsetof(Chunk, size),
                              offsetof(ChunkList, chunks),
                              offsetof(ChunkList, tasks),
                              offsetof(ChunkList, chunk_count),
                              offsetof(ChunkList, task_count),
                              offsetof(ChunkList, elements),
                              offsetof(StepRow, p),
                              offsetof(StepRow, g),
                              offsetof(StepRow, state),
                              offsetof(StepRow, step),
                              offsetof(StepRow, numel),
                              offsetof(StepRow, group),
                              offsetof(StepRow, p_dtype),
                              offsetof(StepRow, g_dtype),
                              offsetof(StepRow, state_dtype),
                              offsetof(StepRow, step_type),
                              offsetof(StepCall, rows),
                              offsetof(StepCall, row_count),
                              offsetof(StepCall, device),
                              offsetof(StepCall, work),
                              offsetof(StepCall, rule),
                              offsetof(StepCall, hyper_here),
                              offsetof(StepCall, hyper),
                              offsetof(StepCall, hyper_rows),
                              offsetof(StepCall, hyper_columns),
                              offsetof(StepCall, norm_type),
                              offsetof(StepCall, norm),
                              offsetof(StepCall, nonfinite),
                              offsetof(StepCall, inv_scale),
                              offsetof(StepCall, found_inf),
                              offsetof(StepCall, max_norm),
                              offsetof(StepCall, skip_nonfinite),
                              offsetof(StepCall, grad_norm),
                              offsetof(StepCall, clip_coef),
                              offsetof(StepCall, nonfinite_out),
                              offsetof(StepCall, skipped_steps)};

constexpr int64_t hash_of_layout() {
  uint64_t hash = 0xcbf29ce484222325;  // FNV-1a
  for (const size_t number : kLayout) hash = (hash ^ number) * 0x100000001b3;
  return int64_t(hash >> 1);
}

// Differs where the two sides of a call lay these structures out differently, or know other functions, not being built
// from the same sources.
inline constexpr int64_t kStepAbi = hash_of_layout();

}  // namespace ft
