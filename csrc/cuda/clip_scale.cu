// Scaling in place to a norm that only the device knows.
#include "cuda/chunks.cuh"
#include "cuda/launch.cuh"
#include "rules/updates.h"

namespace ft {
namespace {

template <class C, class T>
__device__ __forceinline__ void scale_piece(T* x, int64_t size, C factor) {
  constexpr int N = kVectorBytes / int(sizeof(T));
  const int n = int(size), before = elements_before_vector<N>(x), head = before < n ? before : n;
  const int vectors = (n - head) / N;
#pragma unroll 2
  for (int k = int(threadIdx.x); k < vectors; k += kThreads) {
    C v[N];
    load_vector<N>(x + head + k * N, v);
#pragma unroll
    for (int j = 0; j < N; ++j) v[j] = v[j] * factor;
    store_vector<N>(x + head + k * N, v);
  }
  const int t = int(threadIdx.x), edges = n - vectors * N;
  if (t >= edges) return;
  T& edge = x[t < head ? t : t + vectors * N];
  edge = narrow<T>(widen<C>(edge) * factor);
}

__global__ void __launch_bounds__(kThreads)
    scale_kernel(DeviceTable<DeviceRun> table, ScalarRef norm, double max_norm) {
  const double coef = clip_coefficient(read(norm, 0), max_norm);
  if (coef >= 1) return;
  // Backwards: what the norm has read last is read next from the cache.
  for (int64_t chunk = table.chunk_count - 1 - blockIdx.x; chunk >= 0; chunk -= gridDim.x) {
    const Piece piece = find_piece(table, chunk);
    const DeviceRun run = table.rows[piece.row];
    switch (run.dtype) {
      case DType::kFloat:
        scale_piece<float>(in_global(static_cast<float*>(run.x)) + piece.begin, piece.size, float(coef));
        break;
      case DType::kDouble:
        scale_piece<double>(in_global(static_cast<double*>(run.x)) + piece.begin, piece.size, coef);
        break;
      case DType::kHalf:
        scale_piece<float>(in_global(static_cast<__half*>(run.x)) + piece.begin, piece.size, float(coef));
        break;
      case DType::kBFloat16:
        scale_piece<float>(in_global(static_cast<__nv_bfloat16*>(run.x)) + piece.begin, piece.size, float(coef));
        break;
    }
  }
}

}  // namespace
}  // namespace ft

cudaError_t ft_cuda_clip_scale(const ft::DeviceTable<ft::DeviceRun>* table, ft::ScalarRef norm, double max_norm,
                               cudaStream_t stream) {
  int64_t resident = 0;
  if (const cudaError_t error = ft::resident_blocks<&ft::scale_kernel>(ft::kThreads, &resident)) return error;
  const int64_t blocks = std::min(resident, table->chunk_count);
  if (blocks == 0) return cudaSuccess;
  return ft::launch(&ft::scale_kernel, blocks, ft::kThreads, stream, *table, norm, max_norm);
}
