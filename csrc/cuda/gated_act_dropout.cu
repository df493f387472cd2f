// y = dropout(act(gate) * up), [gate, up] = x + bias on the last dimension.
#include "cuda/act_gated.cuh"
#include "cuda/act_rules.cuh"
#include "cuda/act_walk.cuh"

namespace ft {
namespace {

template <class Rule, class T>
struct GatedForward {
  using Elements = T;
  using Wide = WideOf<T>;
  using Inputs = GateAndUpChunks<T>;
  static constexpr bool kColumns = true;
  using Columns = GatedColumns;
  static constexpr int kSums = 0;
  static constexpr int kTake = sizeof(T) <= 4 ? 1 : 0;
  static constexpr int kBlocks = sizeof(T) == 4 ? 3 : 4;

  GateAndUp<T> in;
  T* y;
  Wide scale;

  explicit GatedForward(const ActLaunch& call) : in(call), y(static_cast<T*>(call.out)), scale(Wide(call.scale)) {}

  __device__ __forceinline__ Inputs load(int64_t start, const Columns& columns) const {
    return in.load(start, columns);
  }

  __device__ __forceinline__ Wide dropped(Wide gate, Wide up, bool kept) const {
    const Wide v = Wide(Rule::fwd(RuleOf<T>(gate))) * up * scale;
    return kept ? v : Wide(0);
  }

  template <class Sums>
  __device__ __forceinline__ void whole(int64_t start, const Inputs& inputs, const Keep& keep, const Columns& columns,
                                        Sums&) const {
    Wide gate[kChunk], up[kChunk];
    in.unpack(columns, inputs, gate, up);
    keep.for_each([&](int k, bool kept) { gate[k] = dropped(gate[k], up[k], kept); });
    store_chunk(y, start, gate);
  }

  template <class Sums>
  __device__ __forceinline__ void one(int64_t i, int64_t column, bool kept, int, Sums&) const {
    y[i] = narrow<T>(dropped(in.gate(i, column), in.up(i, column), kept));
  }
};

struct GatedForwardLauncher {
  template <class Rule, class T>
  static cudaError_t launch(const ActLaunch& call, cudaStream_t stream) {
    const bool vectors = GateAndUp<T>::all_aligned(call) && is_aligned(call.out);
    return launch_act(GatedForward<Rule, T>(call), Walk(call, vectors, true), ColumnPlan(), stream);
  }
};

}  // namespace
}  // namespace ft

extern "C" cudaError_t ft_cuda_gated_act_dropout(const ft::ActLaunch* call, cudaStream_t stream) {
  return ft::launch_by_rule_and_type<ft::GatedForwardLauncher>(*call, stream);
}
