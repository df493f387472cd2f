#include "cuda/upload.h"

#include <mutex>
#include <vector>

namespace ft {

struct PinnedBuffer {
  void* memory = nullptr;
  size_t bytes = 0;
  int device = 0;  // of the event
  cudaEvent_t event = nullptr;
  bool copying = false;  // until the event has happened
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
    for (int asked = 0; asked < kAsked; ++asked) {
      PinnedBuffer* const buffer = first(bytes, device);
      if (buffer == nullptr) break;
      const cudaError_t state = state_of(*buffer);
      if (state == cudaSuccess) {
        *to = buffer;
        return cudaSuccess;
      }
      give(buffer);  // behind the others: the next to come asks those
      if (state != cudaErrorNotReady) return state;
    }
    return make(bytes, device, to);
  }

  // Also called when a graph is destroyed, by a thread of CUDA that may not call it, and should not wait: the lock is
  // never held while CUDA is asked anything.
  void give(PinnedBuffer* buffer) {
    const std::lock_guard<std::mutex> guard(lock_);
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
  std::vector<PinnedBuffer*> idle_;
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
  if (!capturing_) {
    buffer_->copying = true;
    return cudaEventRecord(buffer_->event, stream_);
  }
  cudaUserObject_t owner = nullptr;
  if (const cudaError_t error = cudaUserObjectCreate(&owner, buffer_, give_back, 1, cudaUserObjectNoDestructorSync)) {
    return error;
  }
  buffer_ = nullptr;  // the graph gives it back
  return cudaGraphRetainUserObject(graph_, owner, 1, cudaGraphUserObjectMove);
}

}  // namespace ft
