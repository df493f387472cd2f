#include "args/ops.h"

#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY_IMPL(fusedtrain, CPU, m) {
  m.impl("act_dropout", TORCH_BOX(&ft::act_dropout));
  m.impl("act_dropout_", TORCH_BOX(&ft::act_dropout_));
  m.impl("act_dropout_grad", TORCH_BOX(&ft::act_dropout_grad));
  m.impl("gated_act_dropout", TORCH_BOX(&ft::gated_act_dropout));
  m.impl("gated_act_dropout_grad", TORCH_BOX(&ft::gated_act_dropout_grad));
  m.impl("global_norm", TORCH_BOX(&ft::global_norm));
  m.impl("clip_scale_", TORCH_BOX(&ft::clip_scale_));
  m.impl("optim_step_", TORCH_BOX(&ft::optim_step_));
}
