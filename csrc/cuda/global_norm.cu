// Launches of the norm: of a list of runs, or of the gradients of a step.
#include "cuda/launch.cuh"
#include "cuda/norm.cuh"

namespace ft {
namespace {

template <Measure kMeasure, class Row>
cudaError_t launch_norm(const DeviceTable<Row>& table, const NormArgs& args, cudaStream_t stream) {
  constexpr auto kernel = &norm_kernel<kMeasure, Row>;
  int64_t resident = 0;
  if (const cudaError_t error = resident_blocks<kernel>(kThreads, &resident)) return error;
  const int64_t blocks = std::max<int64_t>(std::min(resident, norm_partials(table.chunk_count)), 1);
  return launch(kernel, blocks, kThreads, stream, table, args);
}

template <class Row>
cudaError_t launch_norm(const DeviceTable<Row>& table, const NormArgs& args, cudaStream_t stream) {
  if (std::isinf(args.norm_type)) return launch_norm<Measure::kLargest>(table, args, stream);
  if (args.norm_type == 2 && !args.has_double) return launch_norm<Measure::kSquares>(table, args, stream);
  if (args.norm_type == 1 && !args.has_double) return launch_norm<Measure::kMagnitudes>(table, args, stream);
  return launch_norm<Measure::kScaledPowers>(table, args, stream);
}

}  // namespace
}  // namespace ft

cudaError_t ft_cuda_norm_of_runs(const ft::DeviceTable<ft::DeviceRun>* table, const ft::NormArgs* args,
                                 cudaStream_t stream) {
  return ft::launch_norm(*table, *args, stream);
}

cudaError_t ft_cuda_norm_of_gradients(const ft::DeviceTable<ft::StepRow>* table, const ft::NormArgs* args,
                                      cudaStream_t stream) {
  return ft::launch_norm(*table, *args, stream);
}
