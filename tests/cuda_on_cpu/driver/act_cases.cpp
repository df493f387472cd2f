// Activation + dropout, plain and gated, both ways.
#include <vector>

#include "cuda/act_chunk.cuh"
#include "driver/check.h"
#include "rules/activations.h"
#include "rules/philox.h"

namespace ft {
namespace {

constexpr int64_t kState[2] = {0x123456789abcdef, 40};

struct Case {
  int64_t rows, width;
  int64_t offset;  // of all tensors, in elements
  uint32_t threshold;
  bool bias, residual;
  int64_t operand_offset = 0;  // of bias and residual
};

bool is_kept(int64_t i, uint32_t threshold) {
  return threshold == 0 || lanes(kState[0], kState[1], i >> 3)[int(i & 7)] >= threshold;
}

double keep_scale(uint32_t threshold) { return threshold < 65536 ? 65536.0 / (65536.0 - threshold) : 0; }

ActLaunch launch_of(int rule, DType dtype, const Case& c) {
  ActLaunch call;
  call.rule = rule;
  call.dtype = dtype;
  call.numel = c.rows * c.width;
  call.width = c.width;
  call.rng_state = kState;
  call.threshold = c.threshold;
  call.scale = c.threshold > 0 ? keep_scale(c.threshold) : 1;
  return call;
}

// dbias with its workspace, or nothing.
struct BiasGrad {
  Buffer sums;
  std::vector<double> workspace;

  BiasGrad(ActLaunch& call, DType dtype, int64_t columns, bool wanted, bool gated)
      : sums(dtype == DType::kDouble ? DType::kDouble : DType::kFloat, wanted ? columns : 0) {
    if (!wanted) return;
    workspace.resize(size_t(ft_cuda_act_workspace(call.numel, call.width, dtype, gated) / 8 + 2));
    const uintptr_t begin = reinterpret_cast<uintptr_t>(workspace.data());
    call.dbias = sums.data();
    call.workspace = reinterpret_cast<void*>((begin + 15) / 16 * 16);
  }
};

template <class Rule>
void plain(Tally& tally, int rule, DType dtype, const Case& c) {
  const int64_t n = c.rows * c.width, offset = c.offset * size_of(dtype);
  Buffer x(dtype, n, offset), y(dtype, n, offset), dy(dtype, n, offset), dx(dtype, n, offset);
  const int64_t operand_offset = (c.offset + c.operand_offset) * size_of(dtype);
  Buffer bias(dtype, c.bias ? c.width : 0, operand_offset), residual(dtype, c.residual ? n : 0, operand_offset);
  x.fill(1), dy.fill(2), bias.fill(3), residual.fill(4);
  ActLaunch call = launch_of(rule, dtype, c);
  call.x = x.data();
  call.out = y.data();
  if (c.bias) call.bias = {bias.data(), dtype};
  if (c.residual) call.residual = {residual.data(), dtype};
  call.mark = Rule::kSaves == Saves::kOutput && !c.residual && c.threshold > 0;
  tally.expect(ft_cuda_act_dropout(&call, nullptr) == cudaSuccess, "%s forward: refused", Rule::kName);
  const double scale = keep_scale(c.threshold);
  for (int64_t i = 0; i < n; ++i) {
    const double z = x.get(i) + (c.bias ? bias.get(i % c.width) : 0), r = c.residual ? residual.get(i) : 0;
    const double exact = (is_kept(i, c.threshold) ? Rule::fwd(z) * scale : 0) + r;
    tally.expect(tally.near(y.get(i), exact, dtype), "%s forward, type %d, element %lld of %lld x %lld: %g, not %g",
                 Rule::kName, int(dtype), i, c.rows, c.width, y.get(i), exact);
  }

  const bool from_output = Rule::kSaves == Saves::kOutput && !c.residual;
  ActLaunch back = launch_of(rule, dtype, c);
  back.x = from_output ? y.data() : x.data();
  back.dy = dy.data();
  back.out = dx.data();
  back.from_output = from_output;
  back.bias = call.bias;  // which is not looked at where the output is
  BiasGrad dbias(back, dtype, c.width, c.bias, false);
  tally.expect(ft_cuda_act_dropout_grad(&back, nullptr) == cudaSuccess, "%s backward: refused", Rule::kName);
  std::vector<double> sums(size_t(c.width));
  for (int64_t i = 0; i < n; ++i) {
    const double z = x.get(i) + (c.bias ? bias.get(i % c.width) : 0);
    double slope = Rule::grad(z);
    if constexpr (Rule::kSaves != Saves::kInput) {
      if (from_output && scale > 0) slope = Rule::grad_from_output(y.get(i) / scale);
    }
    const double exact = is_kept(i, c.threshold) ? dy.get(i) * slope * scale : 0;
    sums[size_t(i % c.width)] += exact;
    tally.expect(tally.near(dx.get(i), exact, dtype), "%s backward, type %d, element %lld of %lld x %lld: %g, not %g",
                 Rule::kName, int(dtype), i, c.rows, c.width, dx.get(i), exact);
  }
  for (int64_t k = 0; c.bias && k < c.width; ++k) {
    const double tolerance = 16 * epsilon(dtype) * double(c.rows) * 8;
    tally.expect(std::abs(dbias.sums.get(k) - sums[size_t(k)]) <= tolerance,
                 "%s dbias, type %d, column %lld: %g, not %g", Rule::kName, int(dtype), k, dbias.sums.get(k),
                 sums[size_t(k)]);
  }
  tally.expect(x.intact() && y.intact() && dy.intact() && dx.intact(), "%s: wrote before its output", Rule::kName);
  ++tally.cases;
}

template <class Rule>
void gated(Tally& tally, int rule, DType dtype, const Case& c) {
  const int64_t n = c.rows * c.width, offset = c.offset * size_of(dtype);
  Buffer x(dtype, 2 * n, offset), y(dtype, n, offset), dy(dtype, n, offset), dx(dtype, 2 * n, offset);
  Buffer bias(dtype, c.bias ? 2 * c.width : 0, (c.offset + c.operand_offset) * size_of(dtype));
  x.fill(1), dy.fill(2), bias.fill(3);
  ActLaunch call = launch_of(rule, dtype, c);
  call.x = x.data();
  call.out = y.data();
  if (c.bias) call.bias = {bias.data(), dtype};
  tally.expect(ft_cuda_gated_act_dropout(&call, nullptr) == cudaSuccess, "gated %s forward: refused", Rule::kName);
  ActLaunch back = call;
  back.dy = dy.data();
  back.out = dx.data();
  BiasGrad dbias(back, dtype, 2 * c.width, c.bias, true);
  tally.expect(ft_cuda_gated_act_dropout_grad(&back, nullptr) == cudaSuccess, "gated %s backward: refused",
               Rule::kName);
  const double scale = keep_scale(c.threshold);
  for (int64_t i = 0; i < n; ++i) {
    const int64_t at = i / c.width * 2 * c.width + i % c.width;
    const double g = x.get(at) + (c.bias ? bias.get(i % c.width) : 0);
    const double u = x.get(at + c.width) + (c.bias ? bias.get(c.width + i % c.width) : 0);
    const bool kept = is_kept(i, c.threshold);
    const double exact = kept ? Rule::fwd(g) * u * scale : 0, d = kept ? dy.get(i) * scale : 0;
    const double bound = 1 + std::abs(u);
    tally.expect(std::abs(y.get(i) - exact) <= 16 * epsilon(dtype) * bound * (1 + std::abs(exact)),
                 "gated %s forward, type %d, element %lld: %g, not %g", Rule::kName, int(dtype), i, y.get(i), exact);
    const double d_gate = d * u * Rule::grad(g), d_up = d * Rule::fwd(g);
    tally.expect(std::abs(dx.get(at) - d_gate) <= 16 * epsilon(dtype) * bound * (1 + std::abs(d) + std::abs(d_gate)),
                 "gated %s d_gate, type %d, element %lld: %g, not %g", Rule::kName, int(dtype), i, dx.get(at), d_gate);
    tally.expect(std::abs(dx.get(at + c.width) - d_up) <= 16 * epsilon(dtype) * (1 + std::abs(d) + std::abs(d_up)),
                 "gated %s d_up, type %d, element %lld: %g, not %g", Rule::kName, int(dtype), i, dx.get(at + c.width),
                 d_up);
  }
  tally.expect(x.intact() && y.intact() && dy.intact() && dx.intact(), "gated %s: wrote before its output",
               Rule::kName);
  ++tally.cases;
}

template <class Rule>
void rule_cases(Tally& tally, int rule) {
  const Case all_types[] = {
      {3, 24, 0, 20000, true, false}, {5, 13, 0, 20000, true, true}, {1, 37, 1, 65536, false, false}};
  for (const DType dtype : kAllTypes) {
    for (const Case& c : all_types) {
      plain<Rule>(tally, rule, dtype, c);
      if (!c.residual) gated<Rule>(tally, rule, dtype, c);
    }
  }
}

// What does not depend on the rule: sizes, alignments, several blocks and strips.
template <class Rule>
void shape_cases(Tally& tally, int rule) {
  const Case shapes[] = {
      {0, 8, 0, 20000, true, false},     {1, 1, 0, 20000, true, false},    {1, 7, 0, 20000, false, false},
      {1, 8, 0, 20000, false, false},    {1, 9, 0, 20000, false, false},   {1, 8, 0, 0, false, false},
      {3, 2051, 0, 20000, true, false},  {3, 2048, 0, 20000, true, false}, {300, 16, 0, 20000, true, true},
      {1, 5000, 0, 20000, false, false}, {70, 65, 0, 20000, true, false},  {300, 3, 0, 20000, true, false},
      {12, 4096, 0, 20000, true, false}, {2, 40, 0, 20000, true, true, 1}, {2, 40, 0, 20000, true, false, 1}};
  for (const DType dtype : {DType::kFloat, DType::kBFloat16}) {
    for (const Case& c : shapes) {
      plain<Rule>(tally, rule, dtype, c);
      if (!c.residual) gated<Rule>(tally, rule, dtype, c);
    }
    for (int64_t offset = 0; offset < 16 / size_of(dtype); ++offset) {
      plain<Rule>(tally, rule, dtype, {2, 40, offset, 20000, true, false});
      gated<Rule>(tally, rule, dtype, {2, 40, offset, 20000, true, false});
    }
  }
}

// Sums over rows, in several blocks and strips: all that threads do together.
void shared_cases(Tally& tally, int rule) {
  for (const Case& c : {Case{70, 40, 0, 20000, true, false}, Case{20, 65, 0, 20000, true, false}}) {
    plain<Gelu>(tally, rule, DType::kFloat, c);
    gated<Gelu>(tally, rule, DType::kBFloat16, c);
  }
}

// Two lanes around every threshold that is special.
void lane_cases(Tally& tally) {
  for (const uint32_t threshold : {1u, 2u, 6554u, 32767u, 32768u, 32769u, 65535u, 65536u}) {
    const uint32_t lanes[] = {0, 1, threshold - 1, threshold & 0xffffu, 32767, 32768, 65534, 65535};
    const uint32_t bounds = (threshold - 1) * 0x10001u;
    for (const uint32_t first : lanes) {
      for (const uint32_t second : lanes) {
        const uint32_t word = second << 16 | first;
        const Kept exact = {first >= threshold, second >= threshold};
        const Kept kept = kept_of(word, bounds);
        tally.expect(kept.first == exact.first && kept.second == exact.second,
                     "lanes %u and %u, threshold %u: kept %d and %d", first, second, threshold, int(kept.first),
                     int(kept.second));
      }
    }
    ++tally.cases;
  }
}

template <class... Rules>
void all(Tally& tally, TypeList<Rules...>) {
  int rule = 0;
  if (tally.few) {
    ((Rules::kName == Gelu::kName ? shared_cases(tally, rule) : void(), ++rule), ...);
    return;
  }
  lane_cases(tally);
  (rule_cases<Rules>(tally, rule++), ...);
  rule = 0;
  ((Rules::kName == Gelu::kName || Rules::kName == Relu::kName ? shape_cases<Rules>(tally, rule) : void(), ++rule),
   ...);
}

}  // namespace

void cases(Tally& tally) { all(tally, Activations{}); }

}  // namespace ft
