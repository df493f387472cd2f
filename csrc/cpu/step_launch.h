// A multi-tensor step over a table that has been checked: what the operator and the planned path have in common.
#pragma once
#include "plan/step_table.h"

namespace ft {

double read(const ScalarRef& x);
void write(const ScalarRef& x, double value);  // does nothing where x is absent

void step(const StepCall& call);

}  // namespace ft

// See plan/library.h. Nothing is kept from step to step: there are no plans.
extern "C" __attribute__((visibility("default"))) int ft_cpu_planned_step(void* plan, const ft::StepCall* call,
                                                                          char* message, int64_t capacity);
extern "C" __attribute__((visibility("default"))) int64_t ft_cpu_step_abi();
extern "C" __attribute__((visibility("default"))) int32_t ft_cpu_update_rule(const char* name);
