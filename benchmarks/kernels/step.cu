// Times the kernels of clip + AdamW alone, without torch, in turn with a copy: the tensors of GPT-2 small, and one of
// 2^28 elements, in fp32.
//
//     nvcc -arch=native -O3 -std=c++17 -Icsrc -o step benchmarks/kernels/step.cu csrc/cuda/{global_norm,optim_step}.cu
//     ./step [ROUNDS]
#include <cmath>

#include "cuda/table.h"
#include "rules/updates.h"
#include "timing.cuh"

namespace {

__global__ void fill(float* x, int64_t count, float scale) {
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += int64_t(blockDim.x) * gridDim.x) {
    x[i] = scale * (float(uint32_t(i) * 2654435761u) * 0x1p-31f - 1);
  }
}

std::vector<int64_t> gpt2_small() {
  constexpr int64_t d = 768;
  std::vector<int64_t> sizes = {50257 * d, 1024 * d};
  for (int layer = 0; layer < 12; ++layer) {
    for (int64_t size : {d, d, 3 * d * d, 3 * d, d * d, d, d, d, 4 * d * d, 4 * d, 4 * d * d, d}) sizes.push_back(size);
  }
  sizes.insert(sizes.end(), {d, d});
  return sizes;
}

// The launches of a step of tensors of these sizes, with all that they work on.
class Step {
 public:
  explicit Step(const std::vector<int64_t>& sizes) {
    constexpr int64_t kAligned = 64;
    int64_t total = 0;
    for (int64_t size : sizes) numel_ += size, total += (size + kAligned - 1) / kAligned * kAligned;
    float *p = device_memory<float>(total), *g = device_memory<float>(total), *m = device_memory<float>(2 * total);
    float* steps = device_memory<float>(int64_t(sizes.size()));
    fill<<<4096, 256>>>(p, total, 1);
    fill<<<4096, 256>>>(g, total, 0.01f);
    check(cudaMemset(m, 0, size_t(total) * 2 * sizeof *m));
    check(cudaMemset(steps, 0, sizes.size() * sizeof *steps));
    std::vector<ft::StepRow> rows;
    for (int64_t size : sizes) {
      ft::StepRow row = {};  // of fp32 throughout
      row.p = p, row.g = g, row.state[0] = m, row.state[1] = m + total, row.numel = size;
      row.step = steps + rows.size();
      rows.push_back(row);
      const int64_t taken = (size + kAligned - 1) / kAligned * kAligned;
      p += taken, g += taken, m += taken;
    }
    const double hyper[] = {1e-3, 1, INFINITY, 0, 0.9, 0.999, 1e-8, 0.01};
    constexpr int64_t kHyper = ft::kLaunchHyper + ft::AdamW::kHyper;
    const ft::TableLayout<ft::StepRow> layout(rows.data(), int64_t(rows.size()), kHyper);
    std::vector<char> image(size_t(layout.uploaded));
    layout.write(rows.data(), hyper, image.data());
    char* const memory = device_memory<char>(layout.bytes);
    check(cudaMemcpy(memory, image.data(), image.size(), cudaMemcpyHostToDevice));
    float* const scalars = device_memory<float>(4);
    norm_.partials = layout.partial(memory);
    norm_.tickets = layout.counter(memory, layout.kNormTicket);
    norm_.norm = {scalars, ft::DType::kFloat};
    norm_.nonfinite = {scalars + 1, ft::DType::kFloat};
    ft::StepCall call = {};
    call.hyper = hyper, call.hyper_rows = 1, call.hyper_columns = kHyper;
    call.norm = norm_.norm, call.nonfinite = norm_.nonfinite, call.max_norm = 1;
    call.grad_norm = {scalars + 2, ft::DType::kFloat}, call.clip_coef = {scalars + 3, ft::DType::kFloat};
    args_ = ft::step_args(call, layout, memory);
  }
  double numel() const { return double(numel_); }
  void norm() const { check(ft_cuda_norm_of_gradients(&args_.table, &norm_, nullptr)); }
  void update() const { check(ft_cuda_optim_step(ft::index_of("adamw", ft::Updates{}), &args_, nullptr)); }

 private:
  int64_t numel_ = 0;
  ft::NormArgs norm_;
  ft::StepArgs args_ = {};
};

}  // namespace

int main(int argc, char** argv) {
  constexpr int64_t kCopied = int64_t{1} << 30;
  char *from = device_memory<char>(kCopied), *to = device_memory<char>(kCopied);
  fill<<<4096, 256>>>(reinterpret_cast<float*>(from), kCopied / 4, 1);
  std::vector<Row> rows = {
      {"copy", 2.0 * kCopied, [=] { check(cudaMemcpyAsync(to, from, kCopied, cudaMemcpyDeviceToDevice)); }}};
  const auto add = [&](const std::string& name, const Step& step) {
    rows.push_back({name, 32 * step.numel(), [step] { step.norm(), step.update(); }});
    rows.push_back({name + ", norm alone", 4 * step.numel(), [step] { step.norm(); }});
    rows.push_back({name + ", update alone", 28 * step.numel(), [step] { step.update(); }});
  };
  add("clip + AdamW, GPT-2 small", Step(gpt2_small()));
  add("clip + AdamW, one tensor of 2^28", Step({int64_t{1} << 28}));
  time_and_print(rows, rounds_of(argc, argv));
}
