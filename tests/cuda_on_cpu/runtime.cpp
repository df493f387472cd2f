// The part of CUDA's runtime that the launchers use. Whatever is asynchronous on a device is done at once here.
#include <cuda_runtime.h>

#include <atomic>
#include <cstdlib>
#include <mutex>
#include <string>
#include <vector>

struct EmuEvent {
  int64_t recorded = -1;  // as which of all records
};
struct EmuUserObject {
  void* pointer;
  cudaHostFn_t destroy;
};

namespace {

std::atomic<bool> capturing{false};
std::atomic<int64_t> copies{0}, copied{0}, stream{0}, launches_until_failure{-1}, allocations_until_failure{-1};
std::atomic<int64_t> queries{0}, pinned{0}, records{0}, pending_after{-1};
std::atomic<int> reason{0};
std::atomic<void (*)()> between{nullptr};
std::mutex failing_lock;
std::string failing;
std::mutex graph_lock;
std::vector<EmuUserObject*> owned_by_graph;

void come_between() {
  if (void (*const call)() = between.load()) call();
}

bool fails(const char* function) {
  const std::lock_guard<std::mutex> guard(failing_lock);
  return failing == function;
}

}  // namespace

const char* cudaGetErrorName(cudaError_t error) { return error == cudaSuccess ? "cudaSuccess" : "cudaError"; }
const char* cudaGetErrorString(cudaError_t error) { return error == cudaSuccess ? "no error" : "an error, emulated"; }
cudaError_t cudaGetLastError() { return cudaSuccess; }
cudaError_t cudaPeekAtLastError() { return cudaSuccess; }
cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
cudaError_t cudaSetDevice(int device) { return device == 0 ? cudaSuccess : cudaErrorInvalidValue; }
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = int(emu::resident_blocks());
  return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  *free = *total = 0;
  return cudaSuccess;
}
cudaError_t cudaHostAlloc(void** memory, size_t bytes, unsigned) {
  come_between();
  pinned.fetch_add(1);
  *memory = std::aligned_alloc(64, (bytes + 63) / 64 * 64);
  return *memory != nullptr || bytes == 0 ? cudaSuccess : cudaErrorMemoryAllocation;
}
cudaError_t cudaFreeHost(void* memory) {
  std::free(memory);
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t) {
  copies.fetch_add(1);
  copied.fetch_add(int64_t(bytes));
  if (bytes > 0) std::memcpy(to, from, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
  if (bytes > 0) std::memset(to, value, bytes);
  return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = new EmuEvent;
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t) {
  if (fails(__func__)) return cudaErrorInvalidValue;
  event->recorded = records.fetch_add(1);
  return cudaSuccess;
}
// One that was never recorded has happened, says CUDA.
cudaError_t cudaEventQuery(cudaEvent_t event) {
  come_between();
  queries.fetch_add(1);
  const int64_t after = pending_after.load();
  return after >= 0 && event->recorded >= after ? cudaErrorNotReady : cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaSuccess; }

cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  *status = capturing.load() ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, cudaStreamCaptureStatus* status, unsigned long long* id,
                                     cudaGraph_t* graph, const cudaGraphNode_t**, const cudaGraphEdgeData**, size_t*) {
  if (id != nullptr) *id = 1;
  if (graph != nullptr) *graph = nullptr;
  return cudaStreamIsCapturing(stream, status);
}
cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode*) { return cudaSuccess; }
cudaError_t cudaUserObjectCreate(cudaUserObject_t* object, void* pointer, cudaHostFn_t destroy, unsigned, unsigned) {
  if (fails(__func__)) return cudaErrorMemoryAllocation;
  *object = new EmuUserObject{pointer, destroy};
  return cudaSuccess;
}
cudaError_t cudaGraphRetainUserObject(cudaGraph_t, cudaUserObject_t object, unsigned, unsigned) {
  if (fails(__func__)) return cudaErrorInvalidValue;
  const std::lock_guard<std::mutex> guard(graph_lock);
  owned_by_graph.push_back(object);
  return cudaSuccess;
}
cudaError_t cudaUserObjectRelease(cudaUserObject_t, unsigned) { return cudaSuccess; }

namespace emu {

uintptr_t current_stream() { return uintptr_t(stream.load()); }

bool launch_fails() {
  if (launches_until_failure.load() < 0) return false;
  return launches_until_failure.fetch_sub(1) == 0;
}

bool allocation_fails() {
  if (allocations_until_failure.load() < 0) return false;
  return allocations_until_failure.fetch_sub(1) == 0;
}

Reason reason_of_failure() { return Reason(reason.load()); }

}  // namespace emu

int64_t emu_copies() { return copies.load(); }
int64_t emu_copied_bytes() { return copied.load(); }
void emu_set_current_stream(int64_t to) { stream.store(to); }
void emu_fail_launch_after(int64_t launches) { launches_until_failure.store(launches); }
void emu_fail_allocation_after(int64_t allocations) { allocations_until_failure.store(allocations); }
void emu_set_reason_of_failure(int to) { reason.store(to); }
int64_t emu_event_records() { return records.load(); }
void emu_set_events_pending_after(int64_t after) { pending_after.store(after); }
int64_t emu_event_queries() { return queries.load(); }
int64_t emu_pinned() { return pinned.load(); }
void emu_set_between(void (*call)()) { between.store(call); }
void emu_set_failing(const char* function) {
  const std::lock_guard<std::mutex> guard(failing_lock);
  failing = function != nullptr ? function : "";
}
void emu_set_capturing(int on) { capturing.store(on != 0); }
void emu_destroy_graph() {
  const std::lock_guard<std::mutex> guard(graph_lock);
  for (EmuUserObject* object : owned_by_graph) {
    object->destroy(object->pointer);
    delete object;
  }
  owned_by_graph.clear();
}
