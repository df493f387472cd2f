// The arguments of the norm and step operators, checked.
#pragma once
#include <string>
#include <vector>

#include "args/args.h"
#include "plan/step_table.h"

namespace ft {

inline std::string item(const char* list, int64_t i) { return std::string(list) + "[" + std::to_string(i) + "]"; }

// The type of the elements of list[i]; throws unless it is a floating one on the device of this library. Names are
// composed only then: there are thousands of tensors.
DType check_item(const char* op, const char* list, int64_t i, const Tensor& x);

enum class Layout { kDense, kGaps, kOverlap };

// Dense: the elements fill one block of memory, in any order of dimensions.
Layout layout_of(const Tensor& x);

// A tensor of one element, or none.
ScalarRef check_scalar(const char* op, const char* name, const OptionalTensor& x);

// Memory that a call writes.
class Written {
 public:
  void add(const char* list, int64_t i, const void* begin, int64_t bytes);
  // Throws if any two pieces share memory.
  void check(const char* op);

 private:
  struct Piece {
    uintptr_t begin, end;
    const char* list;
    int64_t i;
  };
  std::vector<Piece> pieces_;
};

// Lists of tensors that are measured, as runs of memory: dense ones as they are, others as contiguous copies.
struct Runs {
  std::vector<Run> runs;
  std::vector<Tensor> dense;
  std::vector<bool> copied;

  Runs(const char* op, const char* name, const TensorList& tensors);
  // Writes the copies back to where they are from.
  void put_back(const TensorList& tensors) const;
};

// max_norm, and gradients that are to be scaled in place.
void check_scaled(const char* op, const TensorList& grads, double max_norm);

// The arguments of optim_step_ as a call that the launchers trust; holds on to what the call points to.
struct CheckedStep {
  StepCall call;  // but for its plan of work, which is the launcher's
  std::vector<StepRow> rows;

  CheckedStep(const char* op, const std::string& rule, const TensorList& params, const TensorList& grads,
              const TensorList& states, const TensorList& steps, const Tensor& hyper, const std::vector<int64_t>& group,
              const OptionalTensor& norm, const OptionalTensor& nonfinite, const OptionalTensor& inv_scale,
              const OptionalTensor& found_inf, double max_norm, bool skip_nonfinite, const OptionalTensor& grad_norm,
              const OptionalTensor& clip_coef, const OptionalTensor& skipped_steps);
  CheckedStep(const CheckedStep&) = delete;
  CheckedStep& operator=(const CheckedStep&) = delete;
};

}  // namespace ft
