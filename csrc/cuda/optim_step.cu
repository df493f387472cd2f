// Launches of a step: a kernel for each update rule.
#include "cuda/launch.cuh"
#include "cuda/step.cuh"

namespace ft {
namespace {

template <class Rule>
cudaError_t launch_step(const StepArgs& args, cudaStream_t stream) {
  constexpr auto kernel = &step_kernel<Rule>;
  int64_t resident = 0;
  if (const cudaError_t error = resident_blocks<kernel>(kThreads, &resident)) return error;
  const int64_t blocks = std::max<int64_t>(std::min(resident, args.table.chunk_count), 1);
  return launch(kernel, blocks, kThreads, stream, args);
}

template <class... Rules>
cudaError_t launch_step(int32_t rule, const StepArgs& args, cudaStream_t stream, TypeList<Rules...>) {
  using Launch = cudaError_t (*)(const StepArgs&, cudaStream_t);
  static constexpr Launch kTable[] = {&launch_step<Rules>...};
  return kTable[rule](args, stream);
}

}  // namespace
}  // namespace ft

cudaError_t ft_cuda_optim_step(int32_t rule, const ft::StepArgs* args, cudaStream_t stream) {
  return ft::launch_step(rule, *args, stream, ft::Updates{});
}
