// A step of every rule over many tensors.
#include <vector>

#include "cuda/table.h"
#include "driver/check.h"
#include "rules/updates.h"

namespace ft {
namespace {

struct Types {
  DType p, g, s;
};

constexpr double kHyper[kLaunchHyper + 4] = {0.1, 1, 0.5, 0.01, 0.5, 0.25, 0.125, 0.0625};  // good for every rule

// One tensor with all that belongs to it.
template <class Rule>
struct Row {
  Buffer p, g;
  std::vector<Buffer> states;
  float steps = 2;

  Row(int64_t numel, Types types, int64_t offset, int seed)
      : p(types.p, numel, offset * size_of(types.p)), g(types.g, numel, offset * size_of(types.g)) {
    p.fill(seed), g.fill(seed + 1);
    for (int k = 0; k < Rule::kStates; ++k) {
      states.emplace_back(types.s, numel, offset * size_of(types.s));
      for (int64_t i = 0; i < numel; ++i)
        // As of averages: squares are not negative, nor less than the square of an average.
        states.back().set(i, (1.5 + 0.5 * std::sin(double(i) + k)) / (k == 0 ? 1 : 2));
    }
  }
  StepRow row() {
    StepRow r = {};
    r.p = p.data(), r.g = g.data(), r.step = &steps, r.numel = p.numel();
    r.p_dtype = p.dtype(), r.g_dtype = g.dtype();
    for (size_t k = 0; k < states.size(); ++k) r.state[k] = states[k].data(), r.state_dtype[k] = states[k].dtype();
    return r;
  }
  bool intact() const {
    bool all = p.intact() && g.intact();
    for (const Buffer& s : states) all = all && s.intact();
    return all;
  }
};

template <class Rule>
void one(Tally& tally, int32_t rule, const std::vector<int64_t>& sizes, Types types, int64_t offset, bool skip) {
  std::vector<Row<Rule>> tensors, before;
  for (size_t i = 0; i < sizes.size(); ++i) {
    tensors.emplace_back(sizes[i], types, offset, int(i));
    before.emplace_back(sizes[i], types, offset, int(i));
  }
  std::vector<StepRow> rows;
  for (Row<Rule>& tensor : tensors) rows.push_back(tensor.row());
  const TableLayout<StepRow> layout(rows.data(), int64_t(rows.size()), kLaunchHyper + 4);
  std::vector<double> memory(size_t(layout.bytes / 8 + 2));
  char* const base = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(memory.data()) + 15) / 16 * 16);
  tally.expect(layout.upload(rows.data(), kHyper, base, nullptr) == cudaSuccess, "step: no upload");
  double norm = 8, found_inf = skip ? 1 : 0, grad_norm = 0, clip_coef = 0;
  int64_t skipped = 0;
  StepCall call = {};
  call.hyper = kHyper;
  call.hyper_columns = kLaunchHyper + Rule::kHyper;
  call.norm = {&norm, DType::kDouble};
  call.found_inf = {&found_inf, DType::kDouble};
  call.max_norm = 4;
  call.grad_norm = {&grad_norm, DType::kDouble};
  call.clip_coef = {&clip_coef, DType::kDouble};
  call.skipped_steps = &skipped;
  const StepArgs args = step_args(call, layout, base);
  tally.expect(ft_cuda_optim_step(rule, &args, nullptr) == cudaSuccess, "%s: refused", Rule::kName);
  const double coef = clip_coefficient(norm, args.max_norm);
  tally.expect(grad_norm == norm && clip_coef == coef && skipped == (skip ? 1 : 0), "%s: wrong outputs", Rule::kName);
  const Prepared<Rule, double> step(kHyper, 3, 1, coef);
  const DType arithmetic = types.p == DType::kDouble ? DType::kDouble : DType::kFloat;
  const DType state_type = epsilon(types.s) > epsilon(arithmetic) ? types.s : arithmetic;
  for (size_t k = 0; k < tensors.size(); ++k) {
    Row<Rule>&now = tensors[k], &then = before[k];
    tally.expect(now.steps == (skip ? 2 : 3), "%s: tensor %d has counted %g steps", Rule::kName, int(k),
                 double(now.steps));
    tally.expect(now.intact(), "%s: wrote before a tensor", Rule::kName);
    for (int64_t i = 0; i < sizes[k]; ++i) {
      double states[kMaxStates] = {}, p = then.p.get(i);
      for (int j = 0; j < Rule::kStates; ++j) states[j] = then.states[size_t(j)].get(i);
      if (!skip) p = step(p, then.g.get(i), states);
      tally.expect(skip ? now.p.get(i) == p : tally.near(now.p.get(i), p, types.p),
                   "%s, types %d %d %d, tensor %d, element %lld: %g, not %g", Rule::kName, int(types.p), int(types.g),
                   int(types.s), int(k), i, now.p.get(i), p);
      for (int j = 0; j < Rule::kStates; ++j) {
        const double got = now.states[size_t(j)].get(i);
        tally.expect(skip ? got == states[j] : tally.near(got, states[j], state_type), "%s: state %d of tensor %d",
                     Rule::kName, j, int(k));
      }
    }
  }
  ++tally.cases;
}

constexpr DType kF = DType::kFloat, kD = DType::kDouble, kH = DType::kHalf, kB = DType::kBFloat16;

template <class Rule>
void rule_cases(Tally& tally, int32_t rule) {
  if (tally.few) {
    one<Rule>(tally, rule, {9000, 0, 3}, {kF, kF, kF}, 0, false);
    return;
  }
  const Types mixes[] = {{kF, kF, kF}, {kB, kB, kF}, {kH, kH, kF}, {kF, kB, kF}, {kF, kH, kF},
                         {kD, kD, kD}, {kB, kF, kB}, {kD, kF, kF}, {kH, kB, kD}};
  for (const Types& types : mixes) {
    one<Rule>(tally, rule, {5, 0, 1, 700}, types, 0, false);
    one<Rule>(tally, rule, {67}, types, 1, false);
  }
  one<Rule>(tally, rule, {0, 8195, 0, 3, 0}, {kF, kF, kF}, 0, false);
  one<Rule>(tally, rule, {40, 7}, {kF, kF, kF}, 0, true);
}

template <class... Rules>
void all(Tally& tally, TypeList<Rules...>) {
  int32_t rule = 0;
  (rule_cases<Rules>(tally, rule++), ...);
  if (tally.few) return;
  for (int64_t offset = 1; offset < 4; ++offset) one<Adam>(tally, 2, {33, 129}, {kF, kF, kF}, offset, false);
  for (int64_t offset = 1; offset < 8; ++offset) one<Adam>(tally, 2, {33, 129}, {kB, kB, kF}, offset, false);
  one<Sgd>(tally, 0, std::vector<int64_t>(100, 3), {kF, kF, kF}, 0, false);
}

}  // namespace

void cases(Tally& tally) { all(tally, Updates{}); }

}  // namespace ft
