// Tensors seen by the loops of act_kernels.h: contiguous runs of elements, read and written block by block.
#pragma once
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "args/act_args.h"
#include "cpu/act_kernels.h"

namespace ft {

// Scratch memory of one thread for one block.
template <class C>
struct Buffer {
  alignas(64) C values[kBlock];
};

// A tensor to read, converted to C.
template <class C>
class Input {
 public:
  Input() = default;
  Input(const char* op, const char* name, const Tensor& x)
      : dtype_(check_tensor(op, name, x)), tensor_(x.is_contiguous() ? x : torch::stable::contiguous(x)) {
    data_ = static_cast<const char*>(tensor_->const_data_ptr());
    direct_ = size_of(dtype_) == int64_t(sizeof(C)) && (dtype_ == DType::kFloat || dtype_ == DType::kDouble);
  }

  explicit operator bool() const { return tensor_.has_value(); }

  // Elements [start, start + n) followed by zeros up to a multiple of kStep: the tensor's own memory where it has the
  // right type and length, else in the buffer.
  const C* block(int64_t start, int64_t n, Buffer<C>& buffer) const {
    if (direct_ && n % kStep == 0) return reinterpret_cast<const C*>(data_) + start;
    copy(start, n, buffer.values);
    std::fill(buffer.values + n, buffer.values + round_up_to_step(n), C(0));
    return buffer.values;
  }

  void copy(int64_t start, int64_t n, C* to) const {
    act_kernels<C>().load[int(dtype_)](data_ + start * size_of(dtype_), to, n);
  }

 private:
  DType dtype_ = DType::kFloat;
  std::optional<Tensor> tensor_;
  const char* data_ = nullptr;
  bool direct_ = false;
};

// A tensor to write, contiguous.
template <class C>
class Output {
 public:
  Output() = default;
  Output(const Tensor& y, DType dtype)
      : dtype_(dtype), data_(static_cast<char*>(y.mutable_data_ptr())), direct_(size_of(dtype) == sizeof(C)) {}

  // Where to compute elements [start, start + n), rounded up to a multiple of kStep.
  C* block(int64_t start, int64_t n, Buffer<C>& buffer) const {
    return direct_ && n % kStep == 0 ? reinterpret_cast<C*>(data_) + start : buffer.values;
  }

  // Writes what was computed there, rounded once.
  void put(int64_t start, int64_t n, const C* values, const uint16_t* lanes, Drop<C> drop, bool mark) const {
    char* to = data_ + start * size_of(dtype_);
    if (reinterpret_cast<const char*>(values) != to) {
      act_kernels<C>().store[int(dtype_)](values, lanes, drop, mark, to, n);
    }
  }
  void put(int64_t start, int64_t n, const C* values) const { put(start, n, values, nullptr, {}, false); }

 private:
  DType dtype_ = DType::kFloat;
  char* data_ = nullptr;
  bool direct_ = false;
};

// A bias repeated, so that every block finds its part in one run: entry i is bias[i % width].
template <class C>
class TiledBias {
 public:
  TiledBias() = default;
  TiledBias(const char* op, const OptionalTensor& bias, int64_t first, int64_t width) : width_(width) {
    if (!bias || width == 0) return;
    const Input<C> input(op, "bias", *bias);
    values_.resize(size_t(width + kBlock));
    input.copy(first, width, values_.data());
    for (int64_t i = width; i < int64_t(values_.size()); ++i) values_[size_t(i)] = values_[size_t(i - width)];
  }
  // The bias of elements from `start` on, kBlock of them; null if there is none.
  const C* block(int64_t start) const { return values_.empty() ? nullptr : values_.data() + start % width_; }

 private:
  int64_t width_ = 0;
  std::vector<C> values_;
};

// The dropout of a call, with its RNG state read.
struct Dropout {
  int64_t seed = 0, offset = 0;
  uint32_t threshold = 0;
  double scale = 0;

  explicit Dropout(const ActCall& call) : threshold(call.threshold), scale(call.scale()) {
    if (!call.rng_state) return;
    const int64_t* state = call.rng_state->const_data_ptr<int64_t>();
    seed = state[0];
    offset = state[call.rng_state->stride(0)];
  }
  bool drops() const { return threshold > 0; }
  template <class C>
  Drop<C> as() const {
    return {threshold, C(scale)};
  }
};

// The lanes of a block of elements.
class LaneBuffer {
 public:
  // Null if nothing is dropped.
  const uint16_t* fill(const Dropout& dropout, int64_t start, int64_t n) {
    if (!dropout.drops()) return nullptr;
    const int64_t skip = start & 7;
    kernels().fill_lanes(dropout.seed, dropout.offset, start >> 3, lanes_, skip + round_up_to_step(n));
    return lanes_ + skip;
  }

 private:
  alignas(64) uint16_t lanes_[kBlock + 8 + kLanesExtra];
};

// f(block start, block length) over [0, numel), in parallel. Blocks do not depend on the number of threads.
template <class F>
void for_blocks(int64_t numel, F&& f) {
  constexpr int64_t kBlocksPerThread = 16;  // tens of microseconds of work: less is not worth waking a thread for
  if (numel == 0) return;
  torch::stable::parallel_for(0, (numel + kBlock - 1) / kBlock, kBlocksPerThread, [&](int64_t first, int64_t last) {
    for (int64_t b = first; b < last; ++b) f(b * kBlock, std::min(kBlock, numel - b * kBlock));
  });
}

// The sum of a gradient over rows, in an order that depends on its shape alone. Rows of few columns are taken several
// at a time as one row of `width_` columns; strips of rows are summed on their own in C, then the strips in double.
template <class C>
class ColumnSums {
 public:
  ColumnSums(int64_t numel, int64_t columns, int64_t groups = 1) : numel_(numel), columns_(columns), groups_(groups) {
    if (columns == 0) return;
    const int64_t together = columns >= kBlock ? 1 : (kBlock + columns - 1) / columns;
    width_ = columns * together;
    rows_ = (numel + width_ - 1) / width_;
    strip_ = std::min<int64_t>(std::max<int64_t>((rows_ + kStrips - 1) / kStrips, kMinRows), kMaxRows);
    strips_ = (rows_ + strip_ - 1) / strip_;
    partial_.assign(size_t(strips_ * groups_ * width_), C(0));
  }

  // f(start, n, sums...) over all elements, in parallel: start and n of a run within one row, and where to add the run
  // of each group.
  template <class F>
  void for_runs(F&& f) {
    if (strips_ == 0) return;
    const int64_t parts = (width_ + kPart - 1) / kPart;
    torch::stable::parallel_for(0, strips_ * parts, 1, [&](int64_t first, int64_t last) {
      for (int64_t item = first; item < last; ++item) {
        const int64_t strip = item / parts, left = item % parts * kPart, right = std::min(left + kPart, width_);
        for (int64_t row = strip * strip_; row < std::min(rows_, (strip + 1) * strip_); ++row) {
          for (int64_t column = left; column < right; column += kBlock) {
            const int64_t start = row * width_ + column;
            const int64_t n = std::min(std::min(kBlock, right - column), numel_ - start);
            if (n > 0) f(start, n, &partial_[size_t(strip * groups_ * width_ + column)]);
          }
        }
      }
    });
  }

  int64_t group_stride() const { return width_; }

  // sums: groups * columns, group by group.
  void reduce(C* sums) const {
    if (columns_ == 0) return;
    torch::stable::parallel_for(0, groups_ * columns_, 4096, [&](int64_t first, int64_t last) {
      std::vector<double> total(size_t(last - first), 0.0);
      for (int64_t strip = 0; strip < strips_; ++strip) {
        for (int64_t group = first / columns_; group * columns_ < last; ++group) {
          const int64_t from = std::max(first, group * columns_), to = std::min(last, (group + 1) * columns_);
          const C* partial = &partial_[size_t((strip * groups_ + group) * width_)];
          for (int64_t tile = 0; tile < width_; tile += columns_) {
            const C* row = partial + tile - group * columns_;
            for (int64_t i = from; i < to; ++i) total[size_t(i - first)] += double(row[i]);
          }
        }
      }
      for (int64_t i = first; i < last; ++i) sums[i] = C(total[size_t(i - first)]);
    });
  }

 private:
  static constexpr int64_t kStrips = 32, kMinRows = 8, kMaxRows = 64, kPart = 4 * kBlock;
  int64_t numel_, columns_, groups_, width_ = 0, rows_ = 0, strip_ = 0, strips_ = 0;
  std::vector<C> partial_;
};

}  // namespace ft
