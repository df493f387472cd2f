// The operators of fusedtrain/schemas.py for CPU tensors, on torch's stable ABI.
#pragma once
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

namespace ft {

using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

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

}  // namespace ft
