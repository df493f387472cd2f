#include "cuda/device_plan.h"

#include <algorithm>
#include <cstring>
#include <type_traits>

namespace ft {
namespace {

static_assert(std::is_trivially_copyable<StepRow>::value, "rows are compared and copied as bytes");

bool same_bytes(const void* a, const void* b, int64_t bytes) {
  return bytes == 0 || std::memcmp(a, b, size_t(bytes)) == 0;
}

}  // namespace

void DevicePlan::draw(const StepCall& call) {
  layout_.emplace(call.rows, call.row_count, host_hyper_size(call));
  image_.assign(size_t(layout_->uploaded), 0);
  layout_->write(call.rows, host_hyper(call), image_.data());
  has_double_ = std::any_of(call.rows, call.rows + call.row_count,
                            [](const StepRow& row) { return row.g_dtype == DType::kDouble; });
}

DevicePlan::Span DevicePlan::changed_rows(const StepCall& call) const {
  constexpr int64_t kRow = sizeof(StepRow);
  const char* const old = image_.data() + layout_->rows;
  const char* const now = reinterpret_cast<const char*>(call.rows);
  if (same_bytes(old, now, call.row_count * kRow)) return {0, 0};
  int64_t first = 0, last = call.row_count;
  while (same_bytes(old + first * kRow, now + first * kRow, kRow)) ++first;
  while (same_bytes(old + (last - 1) * kRow, now + (last - 1) * kRow, kRow)) --last;
  return {first, last};
}

// Brings the image up to date. What of it has changed; nothing if the table no longer lies as it did: rows may be
// elsewhere, but not of other sizes.
std::optional<DevicePlan::Span> DevicePlan::redraw(const StepCall& call) {
  constexpr int64_t kRow = sizeof(StepRow);
  const int64_t hyper_bytes = host_hyper_size(call) * int64_t(sizeof(double));
  if (!layout_ || layout_->row_count != call.row_count || layout_->hyper_bytes != hyper_bytes) return std::nullopt;
  char* const rows = image_.data() + layout_->rows;
  const Span moved = changed_rows(call);
  for (int64_t i = moved.begin; i < moved.end; ++i) {
    const StepRow& old = reinterpret_cast<const StepRow*>(rows)[i];
    if (old.numel != call.rows[i].numel || old.g_dtype != call.rows[i].g_dtype) return std::nullopt;
  }
  Span changed = {0, 0};
  if (!moved.empty()) {
    changed = {layout_->rows + moved.begin * kRow, layout_->rows + moved.end * kRow};
    std::memcpy(image_.data() + changed.begin, call.rows + moved.begin, size_t(changed.end - changed.begin));
  }
  char* const hyper = image_.data() + layout_->hyper;
  if (!call.hyper_here && !same_bytes(hyper, call.hyper, hyper_bytes)) {
    std::memcpy(hyper, call.hyper, size_t(hyper_bytes));
    if (changed.empty()) changed.begin = layout_->hyper;  // they are neighbours: one copy brings rows and these
    changed.end = layout_->hyper + hyper_bytes;
  }
  return changed;
}

cudaError_t DevicePlan::step(const StepCall& call, cudaStream_t stream, const Allocate& allocate) {
  // Taken out of the plan, and put back when all went well: whatever goes wrong, the next step starts afresh.
  std::shared_ptr<char> memory = std::move(memory_);
  std::optional<Span> changed;
  // What an earlier step has yet to read is overwritten behind it, being on the same stream.
  if (memory != nullptr && stream == stream_) changed = redraw(call);
  constexpr int64_t kScalar = sizeof(double);  // the norm and whether it is finite lie behind the table
  if (!changed) {
    draw(call);
    memory.reset();
    memory = allocate(layout_->bytes + 2 * kScalar);
    changed = Span{0, layout_->uploaded};
  }
  char* const base = memory.get();
  if (!changed->empty()) {
    const int64_t begin = changed->begin, bytes = changed->end - begin;
    const auto copy = [&](char* to) { std::memcpy(to, image_.data() + begin, size_t(bytes)); };
    if (const cudaError_t error = upload(base + begin, bytes, stream, copy)) return error;
  }

  StepArgs args = step_args(call, *layout_, base);
  if (call.norm_type > 0) {
    NormArgs norm;
    norm.norm_type = call.norm_type;
    norm.has_double = has_double_;
    norm.partials = layout_->partial(base);
    norm.tickets = layout_->counter(base, layout_->kNormTicket);
    // Rounded as the operator of the norm returns it, so that both ways to a step agree in every bit.
    args.norm = norm.norm = {base + layout_->bytes, has_double_ ? DType::kDouble : DType::kFloat};
    const ScalarRef own = {base + layout_->bytes + kScalar, DType::kFloat};
    args.nonfinite = norm.nonfinite = call.nonfinite_out.data != nullptr ? call.nonfinite_out : own;
    if (const cudaError_t error = ft_cuda_norm_of_gradients(&args.table, &norm, stream)) return error;
  }
  if (const cudaError_t error = ft_cuda_optim_step(call.rule, &args, stream)) return error;
  memory_ = std::move(memory);
  stream_ = stream;
  return cudaSuccess;
}

}  // namespace ft
