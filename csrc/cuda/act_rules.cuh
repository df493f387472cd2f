// Launchers by rule and type of the elements: a table, looked up once.
#pragma once
#include "cuda/act_chunk.cuh"
#include "rules/activations.h"

namespace ft {

using ActLauncher = cudaError_t (*)(const ActLaunch&, cudaStream_t);

// One row: a rule for each DType.
struct ActLaunchers {
  ActLauncher by_type[kDTypes];
};

template <class Launcher, class Rule>
constexpr ActLaunchers launchers_of() {
  return {{&Launcher::template launch<Rule, float>, &Launcher::template launch<Rule, double>,
           &Launcher::template launch<Rule, __half>, &Launcher::template launch<Rule, __nv_bfloat16>}};
}

template <class Launcher, class... Rules>
cudaError_t launch_by_rule_and_type(const ActLaunch& call, cudaStream_t stream, TypeList<Rules...>) {
  static constexpr ActLaunchers kTable[] = {launchers_of<Launcher, Rules>()...};
  return kTable[call.rule].by_type[int(call.dtype)](call, stream);
}

template <class Launcher>
cudaError_t launch_by_rule_and_type(const ActLaunch& call, cudaStream_t stream) {
  return launch_by_rule_and_type<Launcher>(call, stream, Activations{});
}

}  // namespace ft
