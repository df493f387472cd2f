// y = dropout(act(x + bias)) + residual.
#include "cuda/act_rules.cuh"
#include "cuda/act_walk.cuh"

namespace ft {
namespace {

// The largest magnitude that is rounded to zero.
template <class T>
constexpr WideOf<T> kRoundsToZero = 0;
template <>
constexpr float kRoundsToZero<__half> = 0x1p-25f;
template <>
constexpr float kRoundsToZero<__nv_bfloat16> = 0x1p-134f;

template <class Rule, class T, bool kHasBias>
struct Forward {
  using Elements = T;
  using Wide = WideOf<T>;
  using Inputs = Chunk<T>;
  static constexpr bool kColumns = kHasBias;
  using Columns = std::conditional_t<kHasBias, ColumnBias<T>, NoColumns>;
  static constexpr int kSums = 0;
  static constexpr int kTake = sizeof(T) == 2 ? 2 : sizeof(T) == 4 ? 1 : 0;
  static constexpr int kBlocks = 4;
  static constexpr bool kTakesScale = sizeof(T) == 2 && kTakesFactor<Rule>;

  const T* x;
  T* y;
  Operand<T> bias, residual;
  std::conditional_t<kTakesScale, CoarseFactor, Wide> scale;
  bool mark;

  explicit Forward(const ActLaunch& call)
      : x(static_cast<const T*>(call.x)),
        y(static_cast<T*>(call.out)),
        bias(call.bias),
        residual(call.residual),
        scale(call.scale),
        mark(call.mark) {}

  __device__ __forceinline__ Inputs load(int64_t start, const Columns&) const { return load_chunk(x, start); }

  __device__ __forceinline__ Wide dropped(Wide z, bool kept) const {
    Wide v;
    if constexpr (kTakesScale) {
      v = Wide(Rule::fwd(RuleOf<T>(z), scale));
    } else {
      v = Wide(Rule::fwd(RuleOf<T>(z))) * scale;
    }
    // So that the backward can tell a kept zero from a dropped one by the output alone.
    if constexpr (Rule::kSaves == Saves::kOutput) {
      if (mark) v = abs(v) <= kRoundsToZero<T> ? Wide(-0.0) : v;
    }
    return kept ? v : Wide(0);
  }

  template <class Sums>
  __device__ __forceinline__ void whole(int64_t start, const Inputs& inputs, const Keep& keep, const Columns& columns,
                                        Sums&) const {
    Wide v[kChunk];
    unpack(inputs, v);
    if constexpr (kHasBias) columns.add_to(v);
    keep.for_each([&](int k, bool kept) { v[k] = dropped(v[k], kept); });
    if (residual.exists) residual.add_to(v, start);
    store_chunk(y, start, v);
  }

  template <class Sums>
  __device__ __forceinline__ void one(int64_t i, int64_t column, bool kept, int, Sums&) const {
    const Wide z = widen<Wide>(x[i]);
    const Wide v = dropped(kHasBias ? z + bias[column] : z, kept);
    y[i] = narrow<T>(residual.exists ? v + residual[i] : v);
  }
};

struct ForwardLauncher {
  template <class Rule, class T>
  static cudaError_t launch(const ActLaunch& call, cudaStream_t stream) {
    if (call.bias.data != nullptr) return launch_as<Forward<Rule, T, true>>(call, stream);
    return launch_as<Forward<Rule, T, false>>(call, stream);
  }

 private:
  template <class Op>
  static cudaError_t launch_as(const ActLaunch& call, cudaStream_t stream) {
    const bool vectors =
        is_aligned(call.x) && is_aligned(call.out) && is_aligned(call.residual.data) && is_aligned(call.bias.data);
    return launch_act(Op(call), Walk(call, vectors, Op::kColumns), ColumnPlan(), stream);
  }
};

}  // namespace
}  // namespace ft

extern "C" cudaError_t ft_cuda_act_dropout(const ft::ActLaunch* call, cudaStream_t stream) {
  return ft::launch_by_rule_and_type<ft::ForwardLauncher>(*call, stream);
}
