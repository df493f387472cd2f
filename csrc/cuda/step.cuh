// One step of an update rule over all rows of a table, by one kernel, which decides by itself whether and how to clip,
// and whether to step at all.
#pragma once
#include <type_traits>

#include "cuda/chunks.cuh"
#include "rules/updates.h"

namespace ft {

// The dtypes of a row's parameter, gradient and states as one number.
FT_HD constexpr int mix(DType p, DType g, DType s) { return (int(p) * kDTypes + int(g)) * kDTypes + int(s); }

template <class Rule>
__device__ __forceinline__ int mix_of(const StepRow& row) {
  if constexpr (Rule::kStates == 0) {
    return mix(row.p_dtype, row.g_dtype, row.p_dtype == DType::kDouble ? DType::kDouble : DType::kFloat);
  } else {
    for (int k = 1; k < Rule::kStates; ++k) {
      if (row.state_dtype[k] != row.state_dtype[0]) return -1;
    }
    return mix(row.p_dtype, row.g_dtype, row.state_dtype[0]);
  }
}

// N elements, as one vector or, where that is not aligned, one by one.
template <int N, class C, class T>
__device__ __forceinline__ void load_elements(const T* x, bool aligned, C (&to)[N]) {
  if (aligned) {
    load_vector<N>(x, to);
  } else {
#pragma unroll
    for (int j = 0; j < N; ++j) to[j] = widen<C>(x[j]);
  }
}

// The memory of a piece of a row whose types are known.
template <class Rule, class P, class G, class S>
struct Operands {
  P* p;
  const G* g;
  S* s[kMaxStates];

  // The elements of a vector: of the widest type, as many as a thread can move at once.
  static constexpr int N = kVectorBytes / int(sizeof(P) > sizeof(S) ? sizeof(P) : sizeof(S));

  __device__ __forceinline__ Operands(const StepRow& row, int64_t begin)
      : p(in_global(static_cast<P*>(row.p)) + begin), g(in_global(static_cast<const G*>(row.g)) + begin) {
#pragma unroll
    for (int k = 0; k < Rule::kStates; ++k) s[k] = in_global(static_cast<S*>(row.state[k])) + begin;
  }

  // Whether the states are aligned wherever the parameter is.
  __device__ __forceinline__ bool in_step() const {
    bool same = true;
#pragma unroll
    for (int k = 0; k < Rule::kStates; ++k) same &= elements_before_vector<N>(s[k]) == elements_before_vector<N>(p);
    return same;
  }

  template <class C>
  __device__ __forceinline__ void update_vector(int i, bool aligned_g, const Prepared<Rule, C>& rule) const {
    C pv[N], gv[N], sv[kMaxStates][N];
    load_elements<N>(g + i, aligned_g, gv);
    load_vector<N>(p + i, pv);
#pragma unroll
    for (int k = 0; k < Rule::kStates; ++k) load_vector<N>(s[k] + i, sv[k]);
#pragma unroll
    for (int j = 0; j < N; ++j) {
      C own[kMaxStates];
#pragma unroll
      for (int k = 0; k < Rule::kStates; ++k) own[k] = sv[k][j];
      pv[j] = rule(pv[j], gv[j], own);
#pragma unroll
      for (int k = 0; k < Rule::kStates; ++k) sv[k][j] = own[k];
    }
    store_vector<N>(p + i, pv);
#pragma unroll
    for (int k = 0; k < Rule::kStates; ++k) store_vector<N>(s[k] + i, sv[k]);
  }

  template <class C>
  __device__ __forceinline__ void update_one(int i, const Prepared<Rule, C>& rule) const {
    C own[kMaxStates];
#pragma unroll
    for (int k = 0; k < Rule::kStates; ++k) own[k] = widen<C>(s[k][i]);
    p[i] = narrow<P>(rule(widen<C>(p[i]), widen<C>(g[i]), own));
#pragma unroll
    for (int k = 0; k < Rule::kStates; ++k) s[k][i] = narrow<S>(own[k]);
  }

  // By all threads of a block: vectors, and one by one what is before and behind them.
  template <class C>
  __device__ __forceinline__ void update(int64_t size, const Prepared<Rule, C>& rule) const {
    const int n = int(size), before = elements_before_vector<N>(p), head = before < n ? before : n;
    const bool aligned_g = elements_before_vector<N>(g) == before;
    const int end = n - (n - head) % N, t = int(threadIdx.x);
    // First, so that the loop has the registers.
    if (t < n - (end - head)) update_one(t < head ? t : t + (end - head), rule);
#pragma unroll 1
    for (int i = head + t * N; i < end; i += kThreads * N) update_vector(i, aligned_g, rule);
  }
};

// Any types and alignments, element by element.
template <class Rule, class C>
__device__ __forceinline__ void update_any(const StepRow& row, const Piece& piece, const Prepared<Rule, C>& rule) {
#pragma unroll 1
  for (int64_t i = piece.begin + threadIdx.x; i < piece.begin + piece.size; i += kThreads) {
    C own[kMaxStates];
#pragma unroll
    for (int k = 0; k < Rule::kStates; ++k) own[k] = load<C>(row.state[k], row.state_dtype[k], i);
    const C p = rule(load<C>(row.p, row.p_dtype, i), load<C>(row.g, row.g_dtype, i), own);
    store(row.p, row.p_dtype, i, p);
#pragma unroll
    for (int k = 0; k < Rule::kStates; ++k) store(row.state[k], row.state_dtype[k], i, own[k]);
  }
}

template <class P, class G, class S, class Rule, class C>
__device__ __forceinline__ bool update_typed(const StepRow& row, const Piece& piece, const Prepared<Rule, C>& rule) {
  const Operands<Rule, P, G, S> operands(row, piece.begin);
  if (!operands.in_step()) return false;
  operands.update(piece.size, rule);
  return true;
}

template <class Rule>
__device__ __forceinline__ bool update_common(const StepRow& row, const Piece& piece,
                                              const Prepared<Rule, float>& rule) {
  constexpr DType kFloat = DType::kFloat, kHalf = DType::kHalf, kBFloat16 = DType::kBFloat16;
  switch (mix_of<Rule>(row)) {
    case mix(kFloat, kFloat, kFloat):
      return update_typed<float, float, float>(row, piece, rule);
    case mix(kBFloat16, kBFloat16, kFloat):
      return update_typed<__nv_bfloat16, __nv_bfloat16, float>(row, piece, rule);
    case mix(kHalf, kHalf, kFloat):
      return update_typed<__half, __half, float>(row, piece, rule);
    case mix(kFloat, kBFloat16, kFloat):
      return update_typed<float, __nv_bfloat16, float>(row, piece, rule);
    case mix(kFloat, kHalf, kFloat):
      return update_typed<float, __half, float>(row, piece, rule);
    default:
      return false;
  }
}
template <class Rule>
__device__ __forceinline__ bool update_common(const StepRow& row, const Piece& piece,
                                              const Prepared<Rule, double>& rule) {
  constexpr DType kDouble = DType::kDouble;
  return mix_of<Rule>(row) == mix(kDouble, kDouble, kDouble) && update_typed<double, double, double>(row, piece, rule);
}

// Memory for a Prepared<Rule, C> of either type of arithmetic.
struct alignas(16) AnyPrepared {
  unsigned char bytes[96];
};

// Copied, so that it stays in registers.
template <class Rule, class C>
__device__ __forceinline__ Prepared<Rule, C> prepared_as(const AnyPrepared& prepared) {
  static_assert(sizeof(Prepared<Rule, C>) <= sizeof(AnyPrepared), "AnyPrepared is too small");
  static_assert(std::is_trivially_copyable<Prepared<Rule, C>>::value, "is copied as bytes");
  return *reinterpret_cast<const Prepared<Rule, C>*>(prepared.bytes);
}

template <class Rule, class C>
__device__ __forceinline__ void update_piece(const StepRow& row, const Piece& piece, const AnyPrepared& prepared) {
  const Prepared<Rule, C> rule = prepared_as<Rule, C>(prepared);
  if (!update_common<Rule>(row, piece, rule)) update_any<Rule>(row, piece, rule);
}

__device__ __forceinline__ double steps_done(const StepRow& row) {
  switch (row.step_type) {
    case CounterType::kFloat32:
      return double(*static_cast<const float*>(row.step));
    case CounterType::kFloat64:
      return *static_cast<const double*>(row.step);
    case CounterType::kInt64:
      return double(*static_cast<const int64_t*>(row.step));
  }
  return 0;
}

// By one thread of a block that has read the count of a row: the last block to do so raises it.
__device__ __forceinline__ void count_step(const StepRow& row, double t, unsigned* pending) {
  const int64_t readers = device_chunks(row.numel);
  if (readers > 1) {
    __threadfence();  // the read is done before anybody is told so
    if (atomicAdd(pending, 1u) != unsigned(readers - 1)) return;
    *pending = 0;
  }
  switch (row.step_type) {
    case CounterType::kFloat32:
      *static_cast<float*>(row.step) = float(t);
      break;
    case CounterType::kFloat64:
      *static_cast<double*>(row.step) = t;
      break;
    case CounterType::kInt64:
      *static_cast<int64_t*>(row.step) += 1;
      break;
  }
}

// What holds for all rows of a step.
struct Decision {
  double inv_scale, total, clip_coef;
  bool has_norm, skip;
};

__device__ __forceinline__ Decision decide(const StepArgs& args) {
  Decision d;
  d.inv_scale = read(args.inv_scale, 1);
  d.has_norm = args.norm.data != nullptr;
  d.total = read(args.norm, 0) * d.inv_scale;
  d.clip_coef = d.has_norm ? clip_coefficient(d.total, args.max_norm) : 1;
  d.skip = read(args.found_inf, 0) != 0 || (args.skip_nonfinite && read(args.nonfinite, 0) != 0);
  return d;
}

// What the prepared rule in the memory of a block was made for.
struct PreparedFor {
  int64_t group;
  double t;
  bool is_double;
};

// By one thread: the rule as the row wants it. Most neighbours share group and step count, and with them the powers of
// the bias correction.
template <class Rule>
__device__ __forceinline__ void prepare(const StepArgs& args, const StepRow& row, double t, const Decision& decision,
                                        PreparedFor& now, AnyPrepared& to) {
  const bool is_double = row.p_dtype == DType::kDouble;
  if (now.group == row.group && now.t == t && now.is_double == is_double) return;
  now = {row.group, t, is_double};
  const double* hyper = args.hyper + row.group * args.hyper_columns;
  if (is_double) {
    using To = Prepared<Rule, double>;
    *reinterpret_cast<To*>(to.bytes) = To(hyper, t, decision.inv_scale, decision.clip_coef);
  } else {
    using To = Prepared<Rule, float>;
    *reinterpret_cast<To*>(to.bytes) = To(hyper, t, decision.inv_scale, decision.clip_coef);
  }
}

// Of so many blocks each thread has the registers that it needs, and all of them together enough loads under way.
template <class Rule>
constexpr int kBlocks = Rule::kStates < 2 ? 4 - Rule::kDivides : 5 - Rule::kStates;

// Blocks claim one chunk after the other, as some processors are faster than others: with fixed shares a step took 3 %
// longer on an H200.
template <class Rule>
__global__ void __launch_bounds__(kThreads, kBlocks<Rule>) step_kernel(StepArgs args) {
  __shared__ Decision decision;
  __shared__ AnyPrepared prepared;
  __shared__ PreparedFor now;
  __shared__ int64_t next;  // shared to spare two registers, which are short
  __shared__ int flag;
  if (threadIdx.x == 0) {
    decision = decide(args);
    now.group = -1;
    next = args.table.chunk_count - 1 - blockIdx.x;  // backwards: what the norm read last is in the cache yet
  }
  __syncthreads();
  if (!decision.skip) {
    while (next >= 0) {
      const Piece piece = find_piece(args.table, next);
      const StepRow& row = args.table.rows[piece.row];
      __syncthreads();  // nobody needs the rule of the last piece any more
      if (threadIdx.x == 0) {
        const unsigned claimed = atomicAdd(args.claimed, 1u);
        const double t = steps_done(row) + 1;
        prepare<Rule>(args, row, t, decision, now, prepared);
        count_step(row, t, args.pending + piece.row);
        next = args.table.chunk_count - 1 - int64_t(gridDim.x) - int64_t(claimed);
      }
      __syncthreads();
      if (row.p_dtype == DType::kDouble) {
        update_piece<Rule, double>(row, piece, prepared);
      } else {
        update_piece<Rule, float>(row, piece, prepared);
      }
    }
  }
  // An output may be the very scalar that is an input: not before all have read it.
  if (!is_last_block(args.ticket, gridDim.x, &flag) || threadIdx.x != 0) return;
  *args.claimed = 0;
  if (decision.has_norm) write(args.grad_norm, decision.total);
  write(args.clip_coef, decision.clip_coef);
  if (args.skipped_steps != nullptr) *args.skipped_steps += decision.skip ? 1 : 0;
}

}  // namespace ft
