// What a multi-tensor step works on: plain data, shared by the planner, the operators and the launchers.
#pragma once
#include <cstdint>

#include "plan/chunks.h"
#include "plan/dtype.h"

namespace ft {

constexpr int kMaxStates = 3;  // of any rule

enum class CounterType : int32_t { kFloat32, kFloat64, kInt64 };

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
  ChunkList work;       // of launchers on the CPU
  int32_t rule;         // position in Updates
  bool hyper_here;      // whether `hyper` is in the memory of the rows, and not of the host
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

// Differs where the two sides of a call were not built from the same sources.
constexpr int64_t kStepAbi = int64_t(sizeof(StepCall)) << 32 | int64_t(sizeof(StepRow)) << 16 | int64_t(sizeof(Chunk));

}  // namespace ft
