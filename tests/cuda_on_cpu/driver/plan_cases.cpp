// Steps that are repeated over a table that stays on the device: in every bit those over a table that is made anew.
#include <vector>

#include "cuda/device_plan.h"
#include "driver/check.h"
#include "rules/updates.h"

namespace ft {
namespace {

constexpr int32_t kRule = 4, kStates = 2, kColumns = kLaunchHyper + 4;  // AdamW
static_assert(AdamW::kStates == kStates && AdamW::kHyper + kLaunchHyper == kColumns);

// Parameters with their gradients and states, and what a step is told of them.
struct Model {
  std::vector<Buffer> p, g, m, v;
  std::vector<float> steps;
  std::vector<StepRow> rows;
  std::vector<double> hyper;
  double inv_scale = 0.5, outputs[3] = {-1, -1, -1};
  int64_t skipped = 0;

  Model(const std::vector<int64_t>& sizes, DType dtype)
      : steps(sizes.size(), 2.0f),
        hyper{0.1, 1, 0.5, 0.01, 0.5, 0.25, 0.125, 0.0625, 0.2, 1, 2, 0, 0.9, 0.99, 1e-8, 0.1} {
    const DType state = dtype == DType::kDouble ? DType::kDouble : DType::kFloat;
    for (size_t i = 0; i < sizes.size(); ++i) {
      for (auto* list : {&p, &g}) list->emplace_back(dtype, sizes[i]);
      for (auto* list : {&m, &v}) list->emplace_back(state, sizes[i]);
      p[i].fill(int(i)), g[i].fill(int(i) + 1), m[i].fill_with(0.25), v[i].fill_with(0.5);
    }
    rows.resize(sizes.size());
    for (size_t i = 0; i < sizes.size(); ++i) {
      StepRow& row = rows[i];
      row.p = p[i].data(), row.g = g[i].data(), row.state[0] = m[i].data(), row.state[1] = v[i].data();
      row.step = &steps[i], row.numel = sizes[i], row.group = int32_t(i % 2);
      row.p_dtype = row.g_dtype = dtype, row.state_dtype[0] = row.state_dtype[1] = state;
    }
  }

  StepCall call(double norm_type) {
    StepCall c = {};
    c.rows = rows.data(), c.row_count = int64_t(rows.size());
    c.rule = kRule;
    c.hyper = hyper.data(), c.hyper_rows = 2, c.hyper_columns = kColumns;
    c.norm_type = norm_type, c.max_norm = norm_type > 0 ? 1 : -1, c.skip_nonfinite = norm_type > 0;
    c.inv_scale = {&inv_scale, DType::kDouble};
    c.grad_norm = {&outputs[0], DType::kDouble};
    c.clip_coef = {&outputs[1], DType::kDouble};
    c.nonfinite_out = {&outputs[2], DType::kDouble};
    c.skipped_steps = &skipped;
    return c;
  }
  // Gradients of other values, elsewhere.
  void move_gradient(size_t i, int seed) {
    g[i] = Buffer(g[i].dtype(), g[i].numel());
    g[i].fill(seed);
    rows[i].g = g[i].data();
  }
  bool equals(const Model& other) const {
    bool same = skipped == other.skipped && std::memcmp(outputs, other.outputs, sizeof outputs) == 0;
    for (size_t i = 0; i < p.size(); ++i) {
      same = same && steps[i] == other.steps[i];
      for (int64_t k = 0; k < p[i].numel(); ++k) {
        same = same && p[i].get(k) == other.p[i].get(k) && m[i].get(k) == other.m[i].get(k) &&
               v[i].get(k) == other.v[i].get(k);
      }
    }
    return same;
  }
};

// Memory as an allocator gives it: of the very size, with anything in it.
struct Device {
  int64_t allocations = 0;
  std::weak_ptr<char> last;

  std::shared_ptr<char> allocate(int64_t bytes) {
    ++allocations;
    const std::shared_ptr<char> memory(new char[size_t(bytes)], std::default_delete<char[]>());
    std::memset(memory.get(), 0xAB, size_t(bytes));
    last = memory;
    return memory;
  }
};

cudaStream_t stream(uintptr_t number) { return reinterpret_cast<cudaStream_t>(number); }

// A plan that lives on beside one that is made for every step.
class Pair {
 public:
  Pair(Tally& tally, const std::vector<int64_t>& sizes, DType dtype, double norm_type)
      : tally_(tally), norm_type_(norm_type), kept_(sizes, dtype), fresh_(sizes, dtype) {}

  template <class F>
  void change(F&& f) {
    f(kept_), f(fresh_);
  }
  // Steps both; bytes: how many must have been copied for the plan that is kept.
  void step(const char* what, int64_t bytes, uintptr_t on = 0, bool hyper_here = false) {
    const int64_t before = emu_copied_bytes();
    StepCall call = kept_.call(norm_type_);
    call.hyper_here = hyper_here;
    const int64_t launches = emu_launches();
    tally_.expect(run(plan_, call, on) == cudaSuccess, "%s: refused", what);
    tally_.expect(emu_launches() - launches == (norm_type_ > 0 ? 2 : 1), "%s: too many launches", what);
    const int64_t copied = emu_copied_bytes() - before;
    tally_.expect(copied == bytes, "%s: %lld bytes copied, not %lld", what, copied, bytes);
    DevicePlan anew;
    call = fresh_.call(norm_type_);
    tally_.expect(run(anew, call, 0) == cudaSuccess, "%s: refused", what);
    tally_.expect(kept_.equals(fresh_), "%s: other results than those of a new plan", what);
    ++tally_.cases;
  }
  // A step whose launch number `after` fails.
  void fail(int64_t after) {
    emu_fail_launch_after(after);
    tally_.expect(run(plan_, kept_.call(norm_type_), 0) != cudaSuccess, "a failed launch went unnoticed");
    emu_fail_launch_after(-1);
    tally_.expect(device_.last.expired(), "memory that cannot be trusted any more is kept");
  }
  int64_t whole() { return TableLayout<StepRow>(kept_.rows.data(), int64_t(kept_.rows.size()), 2 * kColumns).uploaded; }
  int64_t without_hyper() { return TableLayout<StepRow>(kept_.rows.data(), int64_t(kept_.rows.size()), 0).uploaded; }
  Device& device() { return device_; }

 private:
  cudaError_t run(DevicePlan& plan, const StepCall& call, uintptr_t on) {
    return plan.step(call, stream(on), [&](int64_t bytes) { return device_.allocate(bytes); });
  }

  Tally& tally_;
  double norm_type_;
  Device device_;
  Model kept_, fresh_;
  DevicePlan plan_;
};

constexpr int64_t kRow = sizeof(StepRow), kHyperBytes = 2 * kColumns * int64_t(sizeof(double));

void repeated(Tally& tally, const std::vector<int64_t>& sizes, DType dtype, double norm_type) {
  Pair pair(tally, sizes, dtype, norm_type);
  const size_t last = sizes.size() - 1;
  pair.step("the first step", pair.whole());
  pair.step("the same again", 0);
  pair.change([](Model& model) { model.hyper[0] = 0.3; });
  pair.step("another lr", kHyperBytes);
  pair.change([&](Model& model) { model.move_gradient(last, 7); });
  pair.step("a gradient elsewhere", kRow);
  pair.change([&](Model& model) {
    model.move_gradient(0, 8);
    model.hyper[8] = 0.4;
  });
  // Rows and hyperparameters start at multiples of 16 bytes.
  pair.step("both", (int64_t(sizes.size()) * kRow + 15) / 16 * 16 + kHyperBytes);
  pair.step("on another stream", pair.whole(), 5);
  pair.step("there again", 0, 5);
  pair.step("hyperparameters on the device", pair.without_hyper(), 5, true);
  pair.change([](Model& model) { model.hyper[0] = 0.1; });
  pair.step("of other values", 0, 5, true);
  pair.step("back on the host and the stream", pair.whole());
  if (norm_type > 0 && sizes[0] > 0) {
    const int64_t at = sizes[0] - 1;
    pair.change([&](Model& model) { model.g[0].set(at, HUGE_VAL); });
    pair.step("a step that is skipped", 0);
    pair.change([&](Model& model) { model.g[0].set(at, 1); });
    pair.step("the step after", 0);
  }
  pair.fail(norm_type > 0 ? 1 : 0);
  pair.step("after a failure", pair.whole());
  if (norm_type > 0) pair.fail(0);
}

}  // namespace

void cases(Tally& tally) {
  if (tally.few) {
    repeated(tally, {9000, 0, 3}, DType::kFloat, 2);
    return;
  }
  for (const DType dtype : kAllTypes) {
    for (const double norm_type : {0.0, 1.0, 2.0, 3.0, double(HUGE_VALF)}) {
      repeated(tally, {5, 0, 1, 70}, dtype, norm_type);
      repeated(tally, {67}, dtype, norm_type);
    }
  }
  repeated(tally, {20000, 3, 0}, DType::kFloat, 2);
  repeated(tally, std::vector<int64_t>(100, 3), DType::kFloat, 2);
}

}  // namespace ft
