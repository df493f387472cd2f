// The table of a step that is repeated, kept in the memory of the device from one step to the next.
#pragma once
#include <cuda_runtime.h>

#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "cuda/table.h"

namespace ft {

// Steps over the rows of one table. What the device has already is not brought there again: where nothing but the
// values of tensors has changed since the last step, nothing is.
class DevicePlan {
 public:
  // Gives memory of the current device, aligned to 16 bytes, for work on its current stream. What is under way there
  // when the memory is let go may use it until it is done, as with torch's allocator.
  using Allocate = std::function<std::shared_ptr<char>(int64_t bytes)>;

  // The norm of the gradients, if it is wanted, and the step: a launch each, on the current stream of the current
  // device. Nothing is waited for. The stream must not be one that is captured: a graph would use the memory of the
  // plan for as long as it is replayed.
  cudaError_t step(const StepCall& call, cudaStream_t stream, const Allocate& allocate);

 private:
  // Bytes of the image.
  struct Span {
    int64_t begin, end;
    bool empty() const { return begin == end; }
  };

  void draw(const StepCall& call);
  std::optional<Span> redraw(const StepCall& call);
  Span changed_rows(const StepCall& call) const;

  // Where the parts of the table are, and what was last uploaded of it.
  std::optional<TableLayout<StepRow>> layout_;
  std::vector<char> image_;
  bool has_double_ = false;  // whether any gradient is of doubles

  // Null if what is there is not known, as after a launch that failed: its counters may not be 0.
  std::shared_ptr<char> memory_;
  cudaStream_t stream_ = nullptr;  // on which it was allocated, and alone is used
};

}  // namespace ft
