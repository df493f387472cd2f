// A multi-tensor step over a table that has been checked: what the operator and the planned path have in common.
#pragma once
#include "plan/step_table.h"

namespace ft {

double read(const ScalarRef& x);
void write(const ScalarRef& x, double value);  // does nothing where x is absent

void step(const StepCall& call);

}  // namespace ft

// Runs a step for code that was built apart from this library. Returns 0, or 1 and why in `message`; never throws.
extern "C" __attribute__((visibility("default"))) int ft_cpu_optim_step(const ft::StepCall* call, char* message,
                                                                        int64_t capacity);
// kStepAbi of these sources, and the position of a rule, -1 if there is none of this name.
extern "C" __attribute__((visibility("default"))) int64_t ft_cpu_step_abi();
extern "C" __attribute__((visibility("default"))) int32_t ft_cpu_update_rule(const char* name);
