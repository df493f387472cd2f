// The launchers of activation + dropout: what a kernel is told, in memory of the device, without torch.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "plan/dtype.h"

namespace ft {

// Contiguous elements; none if data is null.
struct ActInput {
  const void* data = nullptr;
  DType dtype = DType::kFloat;
};

// Arguments of the four launchers, which say what they read of it.
struct ActLaunch {
  int rule = 0;  // position in Activations
  DType dtype = DType::kFloat;
  int64_t numel = 0;  // of dy and of the output of the forward
  int64_t width = 1;  // and their columns: gated inputs have twice as many

  // An element is kept iff its lane is at least the threshold. The state, (seed, offset), is read by the kernel, so
  // that a graph can be replayed with another; it is not looked at where nothing is dropped.
  const int64_t* rng_state = nullptr;
  int64_t rng_stride = 1;
  uint32_t threshold = 0;
  double scale = 1;  // of what is kept; 1 where nothing is dropped

  // Bias and residual have the dtype of the call or that of its arithmetic: float, or double for doubles.
  ActInput bias, residual;
  const void* x = nullptr;   // or the output, if from_output; needed by all
  const void* dy = nullptr;  // like x
  void* out = nullptr;       // y, which may be x, or dx

  bool mark = false;         // forward: a kept zero becomes -0.0, for a backward from the output
  bool from_output = false;  // backward: of rules that can; the mask is taken from the output too

  // Backward: the sum of dx over rows, in the type of the arithmetic; null if it is not wanted. If it is, `workspace`
  // has ft_cuda_act_workspace bytes, aligned to 16.
  void* dbias = nullptr;
  void* workspace = nullptr;
};

}  // namespace ft

extern "C" {
int64_t ft_cuda_act_workspace(int64_t numel, int64_t width, ft::DType dtype, bool gated);

// y = dropout(act(x + bias)) + residual. Nothing is launched for no elements, here and below, unless to zero dbias.
cudaError_t ft_cuda_act_dropout(const ft::ActLaunch* call, cudaStream_t stream);
cudaError_t ft_cuda_act_dropout_grad(const ft::ActLaunch* call, cudaStream_t stream);

// y = dropout(act(gate) * up), [gate, up] = x + bias.
cudaError_t ft_cuda_gated_act_dropout(const ft::ActLaunch* call, cudaStream_t stream);
cudaError_t ft_cuda_gated_act_dropout_grad(const ft::ActLaunch* call, cudaStream_t stream);
}
