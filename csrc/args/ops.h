// The operators of fusedtrain/schemas.py: what each library defines for tensors of its device.
#pragma once
#include <cstdint>
#include <string>
#include <tuple>
#include <vector>

#include "args/args.h"

namespace ft {

Tensor act_dropout(const Tensor& x, const OptionalTensor& bias, const OptionalTensor& residual,
                   const OptionalTensor& rng_state, int64_t threshold, const std::string& activation);

void act_dropout_(const Tensor& x, const OptionalTensor& bias, const OptionalTensor& residual,
                  const OptionalTensor& rng_state, int64_t threshold, const std::string& activation);

std::tuple<Tensor, Tensor> act_dropout_grad(const Tensor& dy, const OptionalTensor& saved, const OptionalTensor& bias,
                                            const OptionalTensor& rng_state, int64_t threshold,
                                            const std::string& activation, bool from_output, bool needs_bias_grad);

Tensor gated_act_dropout(const Tensor& x, const OptionalTensor& bias, const OptionalTensor& rng_state,
                         int64_t threshold, const std::string& activation);

std::tuple<Tensor, Tensor> gated_act_dropout_grad(const Tensor& dy, const Tensor& x, const OptionalTensor& bias,
                                                  const OptionalTensor& rng_state, int64_t threshold,
                                                  const std::string& activation, bool needs_bias_grad);

// (norm, nonfinite) of all tensors.
std::tuple<Tensor, Tensor> global_norm(const TensorList& tensors, double norm_type);

// The norm of each.
Tensor tensor_norms(const TensorList& tensors, double norm_type);

void clip_scale_(const TensorList& grads, const Tensor& norm, double max_norm);

void optim_step_(const std::string& rule, const TensorList& params, const TensorList& grads, const TensorList& states,
                 const TensorList& steps, const Tensor& hyper, const std::vector<int64_t>& group,
                 const OptionalTensor& norm, const OptionalTensor& nonfinite, const OptionalTensor& inv_scale,
                 const OptionalTensor& found_inf, double max_norm, bool skip_nonfinite, const OptionalTensor& grad_norm,
                 const OptionalTensor& clip_coef, const OptionalTensor& skipped_steps);

}  // namespace ft
