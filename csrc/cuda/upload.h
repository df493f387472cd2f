// Memory of the host from which a table goes to the device.
#pragma once
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

namespace ft {

struct PinnedBuffer;

// A piece of pinned memory for one upload. Afterwards it is used again once the copy is done: an event tells. A copy
// that is captured into a graph is done at every replay, and the memory belongs to the graph then.
class Upload {
 public:
  Upload(size_t bytes, cudaStream_t stream);
  ~Upload();
  Upload(const Upload&) = delete;
  Upload& operator=(const Upload&) = delete;

  cudaError_t error() const { return error_; }
  void* data() const;
  // Copies `bytes` to the device, asynchronously.
  cudaError_t send(void* to, size_t bytes);

 private:
  cudaError_t give_to_graph(PinnedBuffer* buffer);

  PinnedBuffer* buffer_ = nullptr;
  cudaStream_t stream_;
  cudaGraph_t graph_ = nullptr;
  bool capturing_ = false;
  cudaError_t error_ = cudaSuccess;
};

// Brings `bytes` that write(memory) leaves there to the device, asynchronously, in one copy.
template <class Write>
cudaError_t upload(void* to, int64_t bytes, cudaStream_t stream, Write&& write) {
  Upload staged{size_t(bytes), stream};
  if (staged.error() != cudaSuccess) return staged.error();
  write(static_cast<char*>(staged.data()));
  return staged.send(to, size_t(bytes));
}

}  // namespace ft
