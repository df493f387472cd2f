// The operators of a library, under their names.
#pragma once
#include <torch/csrc/stable/library.h>

#include "args/ops.h"

namespace ft {

template <class Library>
void implement_operators(Library& m) {
  m.impl("act_dropout", TORCH_BOX(&act_dropout));
  m.impl("act_dropout_", TORCH_BOX(&act_dropout_));
  m.impl("act_dropout_grad", TORCH_BOX(&act_dropout_grad));
  m.impl("gated_act_dropout", TORCH_BOX(&gated_act_dropout));
  m.impl("gated_act_dropout_grad", TORCH_BOX(&gated_act_dropout_grad));
  m.impl("global_norm", TORCH_BOX(&global_norm));
  m.impl("tensor_norms", TORCH_BOX(&tensor_norms));
  m.impl("clip_scale_", TORCH_BOX(&clip_scale_));
  m.impl("optim_step_", TORCH_BOX(&optim_step_));
}

}  // namespace ft
