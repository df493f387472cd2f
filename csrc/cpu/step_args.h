// The arguments of the norm and step operators, checked: every one before anything is written.
#pragma once
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <string>
#include <vector>

#include "cpu/act_args.h"
#include "plan/step_table.h"

namespace ft {

using TensorList = std::vector<Tensor>;

inline std::string item(const char* list, int64_t i) { return std::string(list) + "[" + std::to_string(i) + "]"; }

// The type of the elements of list[i]; throws unless it is a floating one on the CPU. Names are composed only then:
// there are thousands of tensors.
DType check_item(const char* op, const char* list, int64_t i, const Tensor& x);

enum class Layout { kDense, kGaps, kOverlap };

// Dense: the elements fill one block of memory, in any order of dimensions.
Layout layout_of(const Tensor& x);

// Whether two tensors have the same shape and their elements in the same order of memory.
bool same_layout(const Tensor& a, const Tensor& b);

// A tensor of one element, or none.
ScalarRef check_scalar(const char* op, const char* name, const OptionalTensor& x);
int64_t* check_counter(const char* op, const char* name, const OptionalTensor& x);

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

}  // namespace ft
