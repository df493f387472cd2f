// What a library of operators offers to those who step over a table again and again: C functions, as it was built
// apart.
//
// Their names have that of the library in the place of X.
//   ft_X_step_abi        kStepAbi of its sources
//   ft_X_update_rule     the position of the rule of a name, -1 if there is none
//   ft_X_planned_step    StepLibrary::step
//   ft_X_new_plan, ft_X_delete_plan, ft_X_stands_aside    likewise, where it has them
#pragma once
#include <cstdint>
#include <cstdio>
#include <exception>
#include <memory>

#include "plan/step_table.h"

namespace ft {

// None of these functions throws; what release and delete_plan cannot do ends the process.
struct StepLibrary {
  // Of the tensors that it holds: whether memory, shape, strides, type and device of each are what they were.
  int (*unchanged)(const void* held) = nullptr;
  void (*release)(void* held) = nullptr;
  // The norm of the gradients, if it is wanted, and the step. kFailed: why is in `message`. kStoodAside: nothing was
  // done, as what is done now would be done again later.
  int (*step)(void* plan, const StepCall* call, char* message, int64_t capacity) = nullptr;
  // A plan is what the library keeps of a table from step to step; null where it keeps nothing.
  void* (*new_plan)() = nullptr;
  void (*delete_plan)(void* plan) = nullptr;
  // Whether a step on this device would stand aside now; null where none ever does.
  int (*stands_aside)(int32_t device) = nullptr;

  TensorLook look;
};

// Something that a library keeps for a table: a plan, or the tensors that it holds, of which reading one by Python
// costs 90 ns and by the library 20.
using Kept = std::unique_ptr<void, void (*)(void*)>;

// What f() returns, or kFailed and why in `message`: for functions of C, which no exception may leave.
template <class F>
int without_throwing(char* message, int64_t capacity, F&& f) {
  try {
    return f();
  } catch (const std::exception& error) {
    std::snprintf(message, size_t(capacity), "%s", error.what());
  } catch (...) {
    std::snprintf(message, size_t(capacity), "unknown error");
  }
  return kFailed;
}

}  // namespace ft
