// Launches of the norm: of a list of runs, of the gradients of a step, or of each run of a list.
#include "cuda/launch.cuh"
#include "cuda/norm.cuh"

namespace ft {
namespace {

template <auto kernel, class Row>
cudaError_t launch_with(const DeviceTable<Row>& table, const NormArgs& args, int64_t parts, cudaStream_t stream) {
  int64_t resident = 0;
  if (const cudaError_t error = resident_blocks<kernel>(kThreads, &resident)) return error;
  const int64_t blocks = std::max<int64_t>(std::min(resident, parts), 1);
  return launch(kernel, blocks, kThreads, stream, table, args);
}

template <class Row>
cudaError_t launch_norm(const DeviceTable<Row>& table, const NormArgs& args, cudaStream_t stream) {
  return with_measure(args, [&](auto measure) {
    return launch_with<&norm_kernel<measure(), Row>>(table, args, norm_partials(table.chunk_count), stream);
  });
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

cudaError_t ft_cuda_tensor_norms(const ft::DeviceTable<ft::DeviceRun>* table, const ft::NormArgs* args,
                                 cudaStream_t stream) {
  return ft::with_measure(*args, [&](auto measure) {
    constexpr auto kernel = &ft::tensor_norms_kernel<measure(), ft::DeviceRun>;
    return ft::launch_with<kernel>(*table, *args, table->chunk_count, stream);
  });
}
