// Times the kernels of activation + dropout alone, without torch, in turn with a copy: 16384 x 16384 in bf16.
//
//     nvcc -arch=native -O3 -std=c++17 -Icsrc -o act benchmarks/kernels/act.cu csrc/cuda/*act_*.cu
//     ./act [ROUNDS]
#include <cuda_bf16.h>

#include "cuda/act_launch.h"
#include "rules/activations.h"
#include "rules/philox.h"
#include "timing.cuh"

namespace {

constexpr int64_t kWidth = 16384, kNumel = kWidth * kWidth;
constexpr ft::DType kBFloat16 = ft::DType::kBFloat16;

// About normally distributed, from the index alone.
__global__ void fill(__nv_bfloat16* x, int64_t count, uint32_t salt) {
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += int64_t(blockDim.x) * gridDim.x) {
    const ft::Lanes lanes = ft::lanes(salt, 0, i);
    float sum = 0;
    for (int k = 0; k < 8; ++k) sum += float(lanes[k]) * 0x1p-16f - 0.5f;
    x[i] = __float2bfloat16(sum * 1.2247449f);  // the variance of each is 1/12
  }
}

}  // namespace

int main(int argc, char** argv) {
  auto *x = device_memory<__nv_bfloat16>(kNumel), *y = device_memory<__nv_bfloat16>(kNumel);
  auto *dy = device_memory<__nv_bfloat16>(kNumel), *dx = device_memory<__nv_bfloat16>(kNumel);
  auto *saved_y = device_memory<__nv_bfloat16>(kNumel), *bias = device_memory<__nv_bfloat16>(kWidth);
  fill<<<4096, 256>>>(x, kNumel, 1);
  fill<<<4096, 256>>>(dy, kNumel, 2);
  fill<<<4096, 256>>>(bias, kWidth, 3);
  check(cudaGetLastError());
  const int64_t seed_and_offset[2] = {1234567, 8};
  int64_t* state = device_memory<int64_t>(2);
  check(cudaMemcpy(state, seed_and_offset, sizeof seed_and_offset, cudaMemcpyHostToDevice));
  float* dbias = device_memory<float>(kWidth);
  void* workspace = device_memory<char>(std::max(ft_cuda_act_workspace(kNumel, kWidth, kBFloat16, false),
                                                 ft_cuda_act_workspace(kNumel / 2, kWidth / 2, kBFloat16, true)));

  std::vector<Row> rows = {
      {"copy", 4.0 * kNumel, [=] { check(cudaMemcpyAsync(y, x, 2 * kNumel, cudaMemcpyDeviceToDevice)); }}};
  using Launcher = cudaError_t (*)(const ft::ActLaunch*, cudaStream_t);
  const auto add = [&](const char* name, Launcher launcher, ft::ActLaunch call, double bytes) {
    rows.push_back({name, bytes * double(call.numel), [=] { check(launcher(&call, nullptr)); }});
  };
  const auto call = [&](const char* rule, double p, bool has_bias = false) {
    ft::ActLaunch made;
    made.rule = ft::index_of(rule, ft::Activations{});
    made.dtype = kBFloat16, made.numel = kNumel, made.width = kWidth, made.rng_state = state;
    made.threshold = uint32_t(p * 65536 + 0.5);
    made.scale = 65536.0 / (65536 - made.threshold);
    made.x = x, made.out = y;
    if (has_bias) made.bias = {bias, kBFloat16};
    return made;
  };
  // The gradient that belongs to it; also that of the bias, if there is one.
  const auto gradient = [&](ft::ActLaunch made) {
    made.dy = dy, made.out = dx;
    if (made.bias.data != nullptr) made.dbias = dbias, made.workspace = workspace;
    return made;
  };
  const ft::ActLaunch gelu = call("gelu", 0.1), biased = call("gelu", 0.1, true);
  ft::ActLaunch residual = biased, relu = call("relu", 0.1), from_y = relu;
  residual.residual = {dy, kBFloat16};
  relu.mark = true;  // as in training: the backward works from y
  add("gelu, p 0.1", ft_cuda_act_dropout, gelu, 4);
  add("gelu, p 0", ft_cuda_act_dropout, call("gelu", 0), 4);
  add("relu, p 0.1", ft_cuda_act_dropout, relu, 4);
  add("identity, p 0", ft_cuda_act_dropout, call("identity", 0), 4);
  add("gelu, p 0.1, bias", ft_cuda_act_dropout, biased, 4);
  add("gelu, p 0.1, bias, residual", ft_cuda_act_dropout, residual, 6);
  add("gradient of gelu, p 0.1", ft_cuda_act_dropout_grad, gradient(gelu), 6);
  add("gradient of gelu, p 0", ft_cuda_act_dropout_grad, gradient(call("gelu", 0)), 6);
  add("gradient of gelu, p 0.1, and of the bias", ft_cuda_act_dropout_grad, gradient(biased), 6);
  relu.out = saved_y;
  check(ft_cuda_act_dropout(&relu, nullptr));
  from_y.x = saved_y, from_y.from_output = true;
  add("gradient of relu from y, p 0.1", ft_cuda_act_dropout_grad, gradient(from_y), 6);
  from_y.bias = biased.bias;
  add("gradient of relu from y, p 0.1, and of the bias", ft_cuda_act_dropout_grad, gradient(from_y), 6);

  ft::ActLaunch gated = call("silu", 0.1);
  gated.numel = kNumel / 2, gated.width = kWidth / 2;
  add("swiglu, p 0.1", ft_cuda_gated_act_dropout, gated, 6);
  add("gradient of swiglu, p 0.1", ft_cuda_gated_act_dropout_grad, gradient(gated), 10);
  gated.bias = biased.bias;
  add("gradient of swiglu, p 0.1, and of the bias", ft_cuda_gated_act_dropout_grad, gradient(gated), 10);
  time_and_print(rows, rounds_of(argc, argv));
}
