// One step of an update rule over a list of CPU tensors.
#include "args/ops.h"
#include "args/step_args.h"
#include "cpu/step_launch.h"

namespace ft {

void optim_step_(const std::string& rule, const TensorList& params, const TensorList& grads, const TensorList& states,
                 const TensorList& steps, const Tensor& hyper, const std::vector<int64_t>& group,
                 const OptionalTensor& norm, const OptionalTensor& nonfinite, const OptionalTensor& inv_scale,
                 const OptionalTensor& found_inf, double max_norm, bool skip_nonfinite, const OptionalTensor& grad_norm,
                 const OptionalTensor& clip_coef, const OptionalTensor& skipped_steps) {
  CheckedStep checked("optim_step_", rule, params, grads, states, steps, hyper, group, norm, nonfinite, inv_scale,
                      found_inf, max_norm, skip_nonfinite, grad_norm, clip_coef, skipped_steps);
  Chunker chunker;
  for (size_t i = 0; i < checked.rows.size(); ++i) chunker.add(int64_t(i), checked.rows[i].numel);
  checked.call.work = chunker.finish();
  step(checked.call);
}

}  // namespace ft
