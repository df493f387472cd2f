// Rows of a table as integers, for kernels that are launched from Python and told addresses.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "plan/step_table.h"

namespace ft {

// Some of the rows of a table, cut into chunks that are numbered through. Each becomes the fields that a caller names,
// in the caller's order:
//   first_chunk        the number of its first chunk; an empty row has none, and the number of the next row's
//   numel              elements
//   aligned            1 if its addresses are multiples of `alignment`, as far as those of p, g and states are fields
//   p, g, state0, ...  addresses
//   step, step_type    the address of its count of steps, and which CounterType that is
//   group              its row of hyperparameters
class IntegerRows {
 public:
  // chosen: positions in `rows`. chunk: elements; alignment: bytes, a power of two. Throws std::invalid_argument.
  IntegerRows(const std::vector<StepRow>& rows, std::vector<size_t> chosen, const std::vector<std::string>& fields,
              int64_t chunk, int64_t alignment);

  struct Span {
    int64_t begin, end;
  };

  // Writes the rows to size() * width() integers. The span of those that are not what was there before, by whole rows.
  // `rows` is what they were chosen from, and differs in the memory of gradients alone.
  Span write(const std::vector<StepRow>& rows, int64_t* to);

  int64_t size() const { return int64_t(chosen_.size()); }
  int64_t width() const { return int64_t(width_); }
  int64_t chunks() const { return chunks_; }

 private:
  std::vector<size_t> chosen_;
  size_t width_, g_, aligned_;    // places of fields among the width_ of a row, width_ if it has none
  std::vector<int64_t> drawn_;    // what is written
  std::vector<uint64_t> others_;  // of each row: which bits its addresses have besides that of g
  uint64_t low_bits_;             // of an address that is not aligned, one of these is set
  int64_t chunks_ = 0;
};

// The names of the types of a row: of p, g and so many states.
std::vector<std::string> type_names(const StepRow& row, size_t states);

}  // namespace ft
