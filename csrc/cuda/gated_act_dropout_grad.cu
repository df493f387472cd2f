// The gradient of y = dropout(act(gate) * up), [gate, up] = x + bias: that of x and, in the same launch, its sum over
// rows.
#include "cuda/act_gated.cuh"
#include "cuda/act_rules.cuh"
#include "cuda/act_walk.cuh"

namespace ft {
namespace {

template <class Rule, class T>
struct GatedBackward {
  using Elements = T;
  using Wide = WideOf<T>;
  struct Inputs {
    Chunk<T> dy;
    GateAndUpChunks<T> x;
  };
  static constexpr bool kColumns = true;
  using Columns = GatedColumns;
  static constexpr int kSums = 2;
  static constexpr int kTake = sizeof(T) <= 4 ? 1 : 0;
  static constexpr int kBlocks = 2;

  const T* dy;
  GateAndUp<T> in;
  T* dx;
  Wide scale;

  explicit GatedBackward(const ActLaunch& call)
      : dy(static_cast<const T*>(call.dy)), in(call), dx(static_cast<T*>(call.out)), scale(Wide(call.scale)) {}

  __device__ __forceinline__ Inputs load(int64_t start, const Columns& columns) const {
    return {load_chunk(dy, start), in.load(start, columns)};
  }

  // Turns gate and up into their gradients. A dropped element selects zero, whatever its activation is.
  __device__ __forceinline__ void differentiate(Wide d, Wide& gate, Wide& up, bool kept) const {
    const RuleOf<T> z(gate);
    const Wide d_gate = d * (Wide(Rule::grad(z)) * up) * scale, d_up = d * Wide(Rule::fwd(z)) * scale;
    gate = kept ? d_gate : Wide(0);
    up = kept ? d_up : Wide(0);
  }

  template <class Sums>
  __device__ __forceinline__ void whole(int64_t start, const Inputs& inputs, const Keep& keep, const Columns& columns,
                                        Sums& sums) const {
    Wide d[kChunk], gate[kChunk], up[kChunk];
    unpack(inputs.dy, d);
    in.unpack(columns, inputs.x, gate, up);
    keep.for_each([&](int k, bool kept) {
      differentiate(d[k], gate[k], up[k], kept);
      sums.add(0, k, gate[k]);
      sums.add(1, k, up[k]);
    });
    const int64_t to = in.gate_index(start, columns.column);
    store_chunk(dx, to, gate);
    store_chunk(dx, to + in.width, up);
  }

  template <class Sums>
  __device__ __forceinline__ void one(int64_t i, int64_t column, bool kept, int k, Sums& sums) const {
    Wide gate = in.gate(i, column), up = in.up(i, column);
    differentiate(widen<Wide>(dy[i]), gate, up, kept);
    sums.add_one(0, k, gate);
    sums.add_one(1, k, up);
    const int64_t to = in.gate_index(i, column);
    dx[to] = narrow<T>(gate);
    dx[to + in.width] = narrow<T>(up);
  }
};

struct GatedBackwardLauncher {
  template <class Rule, class T>
  static cudaError_t launch(const ActLaunch& call, cudaStream_t stream) {
    using Op = GatedBackward<Rule, T>;
    const bool vectors = GateAndUp<T>::all_aligned(call) && is_aligned(call.dy) && is_aligned(call.out);
    return launch_act(Op(call), Walk(call, vectors, true), ColumnPlan::of(call, Op::kSums, sizeof(typename Op::Wide)),
                      stream);
  }
};

}  // namespace
}  // namespace ft

extern "C" cudaError_t ft_cuda_gated_act_dropout_grad(const ft::ActLaunch* call, cudaStream_t stream) {
  return ft::launch_by_rule_and_type<ft::GatedBackwardLauncher>(*call, stream);
}
