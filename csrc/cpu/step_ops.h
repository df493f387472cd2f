// The norm and step operators of fusedtrain/schemas.py for CPU tensors, on torch's stable ABI.
#pragma once
#include "cpu/ops.h"

namespace ft {

// (norm, nonfinite) of all tensors.
std::tuple<Tensor, Tensor> global_norm(const std::vector<Tensor>& tensors, double norm_type);

void clip_scale_(const std::vector<Tensor>& grads, const Tensor& norm, double max_norm);

void optim_step_(const std::string& rule, const std::vector<Tensor>& params, const std::vector<Tensor>& grads,
                 const std::vector<Tensor>& states, const std::vector<Tensor>& steps, const Tensor& hyper,
                 const std::vector<int64_t>& group, const OptionalTensor& norm, const OptionalTensor& nonfinite,
                 const OptionalTensor& inv_scale, const OptionalTensor& found_inf, double max_norm, bool skip_nonfinite,
                 const OptionalTensor& grad_norm, const OptionalTensor& clip_coef, const OptionalTensor& skipped_steps);

}  // namespace ft
