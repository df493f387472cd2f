#include "plan/integer_rows.h"

#include <algorithm>
#include <array>
#include <stdexcept>

namespace ft {
namespace {

int64_t address(const void* data) { return int64_t(reinterpret_cast<uintptr_t>(data)); }

// What is a field of a row as it stands. Runs are addresses of its elements, which a kernel walks.
struct Field {
  const char* name;
  int64_t (*read)(const StepRow&);
  bool run;
};
constexpr std::array<Field, 9> kFields = {{
    {"numel", [](const StepRow& row) { return row.numel; }, false},
    {"p", [](const StepRow& row) { return address(row.p); }, true},
    {"g", [](const StepRow& row) { return address(row.g); }, true},
    {"state0", [](const StepRow& row) { return address(row.state[0]); }, true},
    {"state1", [](const StepRow& row) { return address(row.state[1]); }, true},
    {"state2", [](const StepRow& row) { return address(row.state[2]); }, true},
    {"step", [](const StepRow& row) { return address(row.step); }, false},
    {"step_type", [](const StepRow& row) { return int64_t(row.step_type); }, false},
    {"group", [](const StepRow& row) { return int64_t(row.group); }, false},
}};
static_assert(kMaxStates == 3, "every state is a field");

constexpr std::array<const char*, kDTypes> kTypeNames = {"float32", "float64", "float16", "bfloat16"};

}  // namespace

std::vector<std::string> type_names(const StepRow& row, size_t states) {
  std::vector<std::string> names = {kTypeNames.at(size_t(row.p_dtype)), kTypeNames.at(size_t(row.g_dtype))};
  for (size_t k = 0; k < states; ++k) names.emplace_back(kTypeNames.at(size_t(row.state_dtype[k])));
  return names;
}

IntegerRows::IntegerRows(const std::vector<StepRow>& rows, std::vector<size_t> chosen,
                         const std::vector<std::string>& fields, int64_t chunk, int64_t alignment)
    : chosen_(std::move(chosen)),
      width_(fields.size()),
      g_(width_),
      aligned_(width_),
      drawn_(chosen_.size() * width_),
      others_(chosen_.size()),
      low_bits_(uint64_t(alignment) - 1) {
  const auto refuse = [](const std::string& why) { throw std::invalid_argument("IntegerRows: " + why); };
  if (chunk < 1 || alignment < 1 || (alignment & (alignment - 1)) != 0) {
    refuse("chunk must be > 0, and alignment a power of two");
  }
  size_t first_chunk = width_;
  std::vector<const Field*> known(width_);  // null for those that are none of a StepRow
  for (size_t i = 0; i < width_; ++i) {
    const auto* const found =
        std::find_if(kFields.begin(), kFields.end(), [&](const Field& field) { return field.name == fields[i]; });
    known[i] = found == kFields.end() ? nullptr : found;
    if (fields[i] == "first_chunk")
      first_chunk = i;
    else if (fields[i] == "aligned")
      aligned_ = i;
    else if (known[i] == nullptr)
      refuse("no field is called " + fields[i]);
    if (fields[i] == "g") g_ = i;
  }
  for (size_t k = 0; k < chosen_.size(); ++k) {
    if (chosen_[k] >= rows.size()) refuse("there is no row " + std::to_string(chosen_[k]));
    const StepRow& row = rows[chosen_[k]];
    for (size_t i = 0; i < width_; ++i) {
      const int64_t value = known[i] != nullptr ? known[i]->read(row) : i == first_chunk ? chunks_ : 0;
      drawn_[k * width_ + i] = value;
      if (known[i] != nullptr && known[i]->run && i != g_) others_[k] |= uint64_t(value);
    }
    chunks_ += (row.numel + chunk - 1) / chunk;
  }
}

IntegerRows::Span IntegerRows::write(const std::vector<StepRow>& rows, int64_t* to) {
  Span changed = {0, 0};
  for (size_t k = 0; k < chosen_.size(); ++k) {
    int64_t* const row = drawn_.data() + k * width_;
    uint64_t together = others_[k];
    if (g_ < width_) {
      row[g_] = address(rows.at(chosen_[k]).g);
      together |= uint64_t(row[g_]);
    }
    if (aligned_ < width_) row[aligned_] = (together & low_bits_) == 0 ? 1 : 0;
    int64_t* const old = to + k * width_;
    if (std::equal(row, row + width_, old)) continue;
    std::copy(row, row + width_, old);
    if (changed.end == 0) changed.begin = int64_t(k * width_);
    changed.end = int64_t((k + 1) * width_);
  }
  return changed;
}

}  // namespace ft
