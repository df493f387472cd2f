// The arguments of the act_dropout operators, checked.
#pragma once
#include "args/args.h"
#include "rules/activations.h"

namespace ft {

// Checked arguments that all of these operators have.
struct ActCall {
  int rule = 0;  // position in Activations
  uint32_t threshold = 0;
  OptionalTensor rng_state;  // int64 (2,) = (seed, offset); absent where nothing draws lanes

  // Whether anything is dropped. If not there are no lanes.
  bool drops() const { return threshold > 0; }
  double scale() const { return threshold < 65536 ? 65536.0 / (65536.0 - threshold) : 0.0; }
};

// x (*, D), bias (D,), residual like x. With `inplace`, x is written and its elements must be apart.
ActCall check_forward(const char* op, const Tensor& x, const OptionalTensor& bias, const OptionalTensor& residual,
                      const OptionalTensor& rng_state, int64_t threshold, const std::string& activation,
                      bool inplace = false);

// dy (*, D); `saved`, like dy, is the input, or the output if from_output, or absent if the rule needs neither. If
// from_output the mask is taken from the output and the RNG state may be absent.
ActCall check_backward(const char* op, const Tensor& dy, const OptionalTensor& saved, const OptionalTensor& bias,
                       const OptionalTensor& rng_state, int64_t threshold, const std::string& activation,
                       bool from_output);

// x (*, 2 D), bias (2 D,).
ActCall check_gated_forward(const char* op, const Tensor& x, const OptionalTensor& bias,
                            const OptionalTensor& rng_state, int64_t threshold, const std::string& activation);

// dy (*, D), x (*, 2 D).
ActCall check_gated_backward(const char* op, const Tensor& dy, const Tensor& x, const OptionalTensor& bias,
                             const OptionalTensor& rng_state, int64_t threshold, const std::string& activation);

// Whether the backward of a rule works from its output alone, so that the forward marks kept zeros.
bool saves_output(int rule);

// The shape of the output of the gated operators: that of x with half the columns.
std::vector<int64_t> gated_shape(const Tensor& x);

// A bias gradient of this width, on the device of `like`: of doubles for doubles, else of floats.
Tensor empty_sums(int64_t width, const Tensor& like);

}  // namespace ft
