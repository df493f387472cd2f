// Steps over a table that is kept from one to the next, for code that was built apart from this library: see
// plan/library.h.
#include <new>

#include "args/args.h"
#include "bind/cuda_device.h"
#include "cuda/device_plan.h"
#include "plan/library.h"
#include "rules/updates.h"

namespace ft {
namespace {

constexpr const char* kStep = "optim_step_";

// A copy that is captured would be done again at every replay, from memory that has changed, into a table that a plan
// changes too: a step by lists makes a table for the graph alone.
bool is_captured(const OnDevice& device) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  check(cudaStreamIsCapturing(device.stream(), &status), kStep);
  return status != cudaStreamCaptureStatusNone;
}

int step(DevicePlan& plan, const StepCall& call) {
  const OnDevice here(call.device);
  if (is_captured(here)) return kStoodAside;
  const auto allocate = [&](int64_t bytes) {
    const auto tensor = std::make_shared<Tensor>(empty_bytes(bytes, call.device));
    return std::shared_ptr<char>(tensor, static_cast<char*>(tensor->data_ptr()));
  };
  check(plan.step(call, here.stream(), allocate), kStep);
  return kStepped;
}

}  // namespace
}  // namespace ft

#define FT_EXPORTED extern "C" __attribute__((visibility("default")))

FT_EXPORTED int ft_cuda_planned_step(void* plan, const ft::StepCall* call, char* message, int64_t capacity) {
  return ft::without_throwing(message, capacity, [&] { return ft::step(*static_cast<ft::DevicePlan*>(plan), *call); });
}

FT_EXPORTED void* ft_cuda_new_plan() { return new (std::nothrow) ft::DevicePlan; }

FT_EXPORTED void ft_cuda_delete_plan(void* plan) { delete static_cast<ft::DevicePlan*>(plan); }

FT_EXPORTED int ft_cuda_stands_aside(int32_t device) {
  const auto ask = [&] { return ft::is_captured(ft::OnDevice(device)) ? ft::kStoodAside : ft::kStepped; };
  // What goes wrong shows again, and is told, in the step.
  return ft::without_throwing(nullptr, 0, ask) == ft::kStoodAside;
}

FT_EXPORTED int64_t ft_cuda_step_abi() { return ft::kStepAbi; }

FT_EXPORTED int32_t ft_cuda_update_rule(const char* name) { return ft::index_of(name, ft::Updates{}); }
