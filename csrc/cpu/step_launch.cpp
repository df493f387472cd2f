#include "cpu/step_launch.h"

#include <cstring>
#include <type_traits>
#include <vector>

#include "cpu/norm_launch.h"
#include "cpu/step_kernels.h"
#include "cpu/tasks.h"
#include "plan/library.h"

namespace ft {
namespace {

template <class C>
constexpr DType dtype_of() {
  return std::is_same<C, double>::value ? DType::kDouble : DType::kFloat;
}

double read_step(const void* step, CounterType type) {
  switch (type) {
    case CounterType::kFloat32:
      return *static_cast<const float*>(step);
    case CounterType::kFloat64:
      return *static_cast<const double*>(step);
    case CounterType::kInt64:
      return double(*static_cast<const int64_t*>(step));
  }
  return 0;
}

void write_step(void* step, CounterType type, double t) {
  switch (type) {
    case CounterType::kFloat32:
      *static_cast<float*>(step) = float(t);
      break;
    case CounterType::kFloat64:
      *static_cast<double*>(step) = t;
      break;
    case CounterType::kInt64:
      *static_cast<int64_t*>(step) += 1;
      break;
  }
}

// Memory for a Prepared<Rule, C> of any rule.
struct alignas(16) AnyPrepared {
  unsigned char bytes[96];
};

using Prepare = void (*)(const double* hyper, double t, double inv_scale, double clip_coef, AnyPrepared& to);

template <class Rule, class C>
void prepare(const double* hyper, double t, double inv_scale, double clip_coef, AnyPrepared& to) {
  static_assert(sizeof(Prepared<Rule, C>) <= sizeof(AnyPrepared), "AnyPrepared is too small");
  static_assert(std::is_trivially_copyable<Prepared<Rule, C>>::value, "is copied as bytes");
  new (to.bytes) Prepared<Rule, C>(hyper, t, inv_scale, clip_coef);
}

template <class C, class... Rules>
Prepare prepare_for(int32_t rule, TypeList<Rules...>) {
  static constexpr Prepare kTable[] = {&prepare<Rules, C>...};
  return kTable[rule];
}

template <class... Rules>
int states_of(int32_t rule, TypeList<Rules...>) {
  static constexpr int kTable[] = {Rules::kStates...};
  return kTable[rule];
}

// One operand of a chunk: its own memory where it has the type of the arithmetic, else a buffer, block by block.
template <class C>
struct Operand {
  char* data;
  DType dtype;
  alignas(64) C buffer[kBufferSize];

  bool direct() const { return dtype == dtype_of<C>(); }
  C* load(int64_t i, int64_t n) {
    char* block = data + i * size_of(dtype);
    if (direct()) return reinterpret_cast<C*>(block);
    step_kernels<C>().load[int(dtype)](block, buffer, n);
    return buffer;
  }
  void store(int64_t i, int64_t n) {
    if (!direct()) step_kernels<C>().store[int(dtype)](buffer, data + i * size_of(dtype), n);
  }
};

template <class C>
void update_by_blocks(const StepRow& row, const Chunk& chunk, int32_t rule, int states, const AnyPrepared& prepared) {
  const auto at = [&](const void* x, DType dtype) {
    return static_cast<char*>(const_cast<void*>(x)) + chunk.begin * size_of(dtype);
  };
  Operand<C> p, g, s[kMaxStates];
  p.data = at(row.p, p.dtype = row.p_dtype);
  g.data = at(row.g, g.dtype = row.g_dtype);
  for (int k = 0; k < states; ++k) s[k].data = at(row.state[k], s[k].dtype = row.state_dtype[k]);
  for (int64_t i = 0; i < chunk.size; i += kBufferSize) {
    const int64_t n = std::min(kBufferSize, chunk.size - i);
    C* blocks[kMaxStates] = {};
    for (int k = 0; k < states; ++k) blocks[k] = s[k].load(i, n);
    C* p_block = p.load(i, n);
    step_kernels<C>().update[rule](prepared.bytes, p_block, g.load(i, n), blocks, n);
    p.store(i, n);
    for (int k = 0; k < states; ++k) s[k].store(i, n);
  }
}

template <class C>
void update_chunk(const StepRow& row, const Chunk& chunk, int32_t rule, int states, const AnyPrepared& prepared) {
  bool direct = row.p_dtype == dtype_of<C>() && row.g_dtype == dtype_of<C>();
  C* s[kMaxStates] = {};
  for (int k = 0; k < states; ++k) {
    direct &= row.state_dtype[k] == dtype_of<C>();
    s[k] = static_cast<C*>(row.state[k]) + chunk.begin;
  }
  if (direct) {
    step_kernels<C>().update[rule](prepared.bytes, static_cast<C*>(row.p) + chunk.begin,
                                   static_cast<const C*>(row.g) + chunk.begin, s, chunk.size);
  } else {
    update_by_blocks<C>(row, chunk, rule, states, prepared);
  }
}

const double* hyper_of(const StepCall& call, const StepRow& row) { return call.hyper + row.group * call.hyper_columns; }

bool same_hyper(const StepCall& call, const StepRow& a, const StepRow& b) {
  const size_t bytes = size_t(call.hyper_columns) * sizeof(double);
  return a.group == b.group || std::memcmp(hyper_of(call, a), hyper_of(call, b), bytes) == 0;
}

void update_all(const StepCall& call, double inv_scale, double clip_coef) {
  constexpr int64_t kSerial = int64_t{1} << 17;  // some 100 microseconds
  std::vector<double> t(size_t(call.row_count));
  for (int64_t i = 0; i < call.row_count; ++i) {
    const StepRow& row = call.rows[i];
    t[size_t(i)] = read_step(row.step, row.step_type) + 1;
    write_step(row.step, row.step_type, t[size_t(i)]);
  }
  const int states = states_of(call.rule, Updates{});
  const Prepare single = prepare_for<float>(call.rule, Updates{}), twice = prepare_for<double>(call.rule, Updates{});
  for_tasks(call.work, kSerial, true, [&](int64_t task) {
    AnyPrepared prepared;
    const StepRow* last = nullptr;
    for (int64_t i = call.work.tasks[task]; i < call.work.tasks[task + 1]; ++i) {
      const Chunk& chunk = call.work.chunks[i];
      const StepRow& row = call.rows[chunk.row];
      const bool is_double = row.p_dtype == DType::kDouble;
      // Most neighbours share hyperparameters and step count, and with them the two powers of the bias correction.
      if (last == nullptr || !same_hyper(call, *last, row) || t[size_t(last - call.rows)] != t[size_t(chunk.row)] ||
          (last->p_dtype == DType::kDouble) != is_double) {
        (is_double ? twice : single)(hyper_of(call, row), t[size_t(chunk.row)], inv_scale, clip_coef, prepared);
      }
      last = &row;
      is_double ? update_chunk<double>(row, chunk, call.rule, states, prepared)
                : update_chunk<float>(row, chunk, call.rule, states, prepared);
    }
  });
}

}  // namespace

double read(const ScalarRef& x) {
  double value = 0;
  step_kernels<double>().load[int(x.dtype)](x.data, &value, 1);
  return value;
}

void write(const ScalarRef& x, double value) {
  if (x.data != nullptr) step_kernels<double>().store[int(x.dtype)](&value, x.data, 1);
}

void step(const StepCall& call) {
  const double inv_scale = call.inv_scale.data != nullptr ? read(call.inv_scale) : 1;
  bool nonfinite = false, has_norm = true;
  double total = 0;
  if (call.norm_type > 0) {
    const Norm norm = norm_of(call.work, call.norm_type, [&](int64_t row) {
      return Run{call.rows[row].g, call.rows[row].numel, call.rows[row].g_dtype};
    });
    // Rounded as the operator of the norm returns it, so that both ways to a step agree in every bit.
    const double value = call.grad_norm.dtype == DType::kDouble ? norm.value : double(float(norm.value));
    total = value * inv_scale;
    nonfinite = norm.nonfinite;
    write(call.nonfinite_out, nonfinite ? 1 : 0);
  } else {
    has_norm = call.norm.data != nullptr;
    if (has_norm) total = read(call.norm) * inv_scale;
    if (call.nonfinite.data != nullptr) nonfinite = read(call.nonfinite) != 0;
  }
  const double clip_coef = has_norm ? clip_coefficient(total, call.max_norm) : 1;
  const bool found_inf = call.found_inf.data != nullptr && read(call.found_inf) != 0;
  const bool skip = found_inf || (call.skip_nonfinite && nonfinite);
  if (has_norm) write(call.grad_norm, total);
  write(call.clip_coef, clip_coef);
  if (call.skipped_steps != nullptr) *call.skipped_steps += skip ? 1 : 0;
  if (!skip) update_all(call, inv_scale, clip_coef);
}

}  // namespace ft

int ft_cpu_planned_step(void*, const ft::StepCall* call, char* message, int64_t capacity) {
  return ft::without_throwing(message, capacity, [&] {
    ft::step(*call);
    return ft::kStepped;
  });
}

int64_t ft_cpu_step_abi() { return ft::kStepAbi; }

int32_t ft_cpu_update_rule(const char* name) { return ft::index_of(name, ft::Updates{}); }
