#include "cuda/upload.h"

#include <algorithm>
#include <array>
#include <mutex>
#include <utility>
#include <vector>

namespace ft {

struct PinnedBuffer {
  void* memory = nullptr;
  size_t bytes = 0;
  int device = 0;  // of the event
  cudaEvent_t event = nullptr;
  bool copying = false;  // until the event has happened
  uint64_t given = 0;    // its place in the order of giving back
};

namespace {

// What may not be done while any stream of the process is captured is allowed in this mode: it does not touch the
// graph.
class RelaxedCapture {
 public:
  RelaxedCapture() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  ~RelaxedCapture() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  RelaxedCapture(const RelaxedCapture&) = delete;
  RelaxedCapture& operator=(const RelaxedCapture&) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

// Buffers that nobody holds. Never taken down: at the end of the process the driver may be gone before us.
class Pool {
 public:
  cudaError_t take(size_t bytes, PinnedBuffer** to) {
    int device = 0;
    if (const cudaError_t error = cudaGetDevice(&device)) return error;
    const RelaxedCapture relaxed;
    std::array<PinnedBuffer*, kAsked> busy;
    int asked = 0;
    cudaError_t state = cudaErrorNotReady;
    while (state == cudaErrorNotReady && asked < kAsked) {
      PinnedBuffer* const buffer = first(bytes, device);
      if (buffer == nullptr) break;
      state = state_of(*buffer);
      if (state == cudaSuccess) {
        *to = buffer;
      } else {
        busy[size_t(asked++)] = buffer;
      }
    }
    if (asked > 0) put_back(busy.data(), asked);
    return state == cudaErrorNotReady ? make(bytes, device, to) : state;
  }

  // Also called when a graph is destroyed, by a thread of CUDA that may not call it, and should not wait: the lock is
  // never held while CUDA is asked anything.
  void give(PinnedBuffer* buffer) {
    const std::lock_guard<std::mutex> guard(lock_);
    buffer->given = given_++;
    idle_.push_back(buffer);
  }

 private:
  // Of a process that is far ahead of the device all buffers are busy, and to ask hundreds takes longer than to make
  // another.
  static constexpr int kAsked = 4;

  // The one that has been here for longest, taken out; null if none is large enough.
  PinnedBuffer* first(size_t bytes, int device) {
    const std::lock_guard<std::mutex> guard(lock_);
    for (size_t i = 0; i < idle_.size(); ++i) {
      PinnedBuffer* const buffer = idle_[i];
      if (buffer->device != device || buffer->bytes < bytes) continue;
      idle_.erase(idle_.begin() + std::ptrdiff_t(i));
      return buffer;
    }
    return nullptr;
  }

  // Where they were before they were taken out to be asked about.
  void put_back(PinnedBuffer* const* buffers, int count) {
    const auto earlier = [](const PinnedBuffer* a, const PinnedBuffer* b) { return a->given < b->given; };
    const std::lock_guard<std::mutex> guard(lock_);
    for (int i = 0; i < count; ++i) {
      idle_.insert(std::upper_bound(idle_.begin(), idle_.end(), buffers[i], earlier), buffers[i]);
    }
  }

  static cudaError_t state_of(PinnedBuffer& buffer) {
    if (!buffer.copying) return cudaSuccess;
    const cudaError_t state = cudaEventQuery(buffer.event);
    if (state == cudaErrorNotReady) cudaGetLastError();  // it was a question, not an error
    buffer.copying = state != cudaSuccess;
    return state;
  }

  static cudaError_t make(size_t bytes, int device, PinnedBuffer** to) {
    size_t rounded = size_t{4} << 10;
    while (rounded < bytes) rounded *= 2;
    PinnedBuffer buffer;
    buffer.bytes = rounded;
    buffer.device = device;
    if (const cudaError_t error = cudaEventCreateWithFlags(&buffer.event, cudaEventDisableTiming)) return error;
    if (const cudaError_t error = cudaHostAlloc(&buffer.memory, rounded, cudaHostAllocDefault)) {
      cudaEventDestroy(buffer.event);
      return error;
    }
    *to = new PinnedBuffer(buffer);
    return cudaSuccess;
  }

  std::mutex lock_;
  std::vector<PinnedBuffer*> idle_;  // by when they were given back: what has been idle for longest is free first
  uint64_t given_ = 0;
};

Pool& pool() {
  static Pool* const all = new Pool;
  return *all;
}

void give_back(void* buffer) { pool().give(static_cast<PinnedBuffer*>(buffer)); }

}  // namespace

Upload::Upload(size_t bytes, cudaStream_t stream) : stream_(stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  error_ = cudaStreamGetCaptureInfo(stream, &status, nullptr, &graph_);
  capturing_ = status == cudaStreamCaptureStatusActive;
  if (error_ == cudaSuccess) error_ = pool().take(bytes, &buffer_);
}

Upload::~Upload() {
  if (buffer_ != nullptr) pool().give(buffer_);
}

void* Upload::data() const { return buffer_->memory; }

cudaError_t Upload::send(void* to, size_t bytes) {
  if (const cudaError_t error = cudaMemcpyAsync(to, buffer_->memory, bytes, cudaMemcpyHostToDevice, stream_)) {
    return error;
  }
  // From here on it is read, now or at every replay. Should CUDA not promise to tell when that is over, it stays with
  // nobody: to lose it is better than to overwrite what is still read.
  PinnedBuffer* const buffer = std::exchange(buffer_, nullptr);
  if (capturing_) return give_to_graph(buffer);
  if (const cudaError_t error = cudaEventRecord(buffer->event, stream_)) return error;
  buffer->copying = true;
  pool().give(buffer);
  return cudaSuccess;
}

// Which gives it back when it is destroyed.
cudaError_t Upload::give_to_graph(PinnedBuffer* buffer) {
  cudaUserObject_t owner = nullptr;
  if (const cudaError_t error = cudaUserObjectCreate(&owner, buffer, give_back, 1, cudaUserObjectNoDestructorSync)) {
    return error;
  }
  return cudaGraphRetainUserObject(graph_, owner, 1, cudaGraphUserObjectMove);
}

}  // namespace ft
