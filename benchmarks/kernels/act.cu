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
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 20;
  auto *x = device_memory<__nv_bfloat16>(kNumel), *y = device_memory<__nv_bfloat16>(kNumel);
  auto *dy = device_memory<__nv_bfloat16>(kNumel), *dx = device_memory<__nv_bfloat16>(kNumel);
  fill<<<4096, 256>>>(x, kNumel, 1);
  fill<<<4096, 256>>>(dy, kNumel, 2);
  const int64_t seed_and_offset[2] = {1234567, 8};
  int64_t* state = device_memory<int64_t>(2);
  check(cudaMemcpy(state, seed_and_offset, sizeof seed_and_offset, cudaMemcpyHostToDevice));
  float* dbias = device_memory<float>(kWidth);
  void* workspace = device_memory<char>(ft_cuda_act_workspace(kNumel, kWidth, kBFloat16, true));

  const auto call = [&](const char* rule, double p) {
    ft::ActLaunch made;
    made.rule = ft::index_of(rule, ft::Activations{});
    made.dtype = kBFloat16, made.numel = kNumel, made.width = kWidth, made.rng_state = state;
    made.threshold = uint32_t(p * 65536 + 0.5);
    made.scale = 65536.0 / (65536 - made.threshold);
    made.x = x, made.dy = dy;
    return made;
  };
  std::vector<Row> rows = {
      {"copy", 4.0 * kNumel, [=] { check(cudaMemcpyAsync(y, x, 2 * kNumel, cudaMemcpyDeviceToDevice)); }}};
  const auto forward = [&](const char* name, ft::ActLaunch made, double bytes) {
    made.out = y;
    rows.push_back({name, bytes * double(made.numel), [=] { check(ft_cuda_act_dropout(&made, nullptr)); }});
  };
  const auto backward = [&](const char* name, ft::ActLaunch made, bool sums) {
    made.out = dx;
    if (sums) made.dbias = dbias, made.workspace = workspace;
    rows.push_back({name, 6.0 * double(made.numel), [=] { check(ft_cuda_act_dropout_grad(&made, nullptr)); }});
  };
  ft::ActLaunch biased = call("gelu", 0.1), both;
  biased.bias = {y, kBFloat16};
  both = biased;
  both.residual = {dy, kBFloat16};
  forward("gelu, p 0.1", call("gelu", 0.1), 4);
  forward("gelu, p 0", call("gelu", 0), 4);
  forward("relu, p 0.1", call("relu", 0.1), 4);
  forward("identity, p 0", call("identity", 0), 4);
  forward("gelu, p 0.1, bias", biased, 4);
  forward("gelu, p 0.1, bias, residual", both, 6);
  backward("gradient of gelu, p 0.1", call("gelu", 0.1), false);
  backward("gradient of gelu, p 0", call("gelu", 0), false);
  backward("gradient of gelu, p 0.1, and of the bias", biased, true);

  ft::ActLaunch gated = call("silu", 0.1);
  gated.numel = kNumel / 2, gated.width = kWidth / 2, gated.out = y;
  rows.push_back(
      {"swiglu, p 0.1", 6.0 * double(gated.numel), [=] { check(ft_cuda_gated_act_dropout(&gated, nullptr)); }});
  gated.out = dx;
  rows.push_back({"gradient of swiglu, p 0.1", 10.0 * double(gated.numel),
                  [=] { check(ft_cuda_gated_act_dropout_grad(&gated, nullptr)); }});
  time_and_print(rows, rounds);
}
