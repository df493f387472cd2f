// Tensors that are held from one step to the next, to be looked at without Python: for the table of a repeated step.
#pragma once
#include <cstdint>
#include <vector>

#include "args/args.h"
#include "plan/sight.h"

namespace ft {

// Holds the tensors themselves, not what they refer to now: `x.data = y` or `x.resize_(n)` is seen.
class HeldTensors {
 public:
  explicit HeldTensors(const TensorList& tensors);

  uintptr_t first_word() const;

  // Whether the memory, shape, strides and type of each are what they were; the device is that of the memory, as all
  // devices and the host share one address space.
  bool unchanged() const;

 private:
  struct Seen {
    Sight sight;     // without the device; its shape is an address in torch's own object, to be fetched ahead
    size_t extents;  // where its shape, and then its strides, are in extents_
  };

  TensorList tensors_;
  std::vector<Seen> seen_;
  std::vector<int64_t> extents_;
};

// The operator: the address of a new HeldTensors, which the caller gives back to ft_release_tensors.
int64_t hold_tensors(const TensorList& tensors);

}  // namespace ft

extern "C" __attribute__((visibility("default"))) int ft_held_unchanged(const ft::HeldTensors* held);
extern "C" __attribute__((visibility("default"))) void ft_release_tensors(ft::HeldTensors* held);
// The first word of what torch hands over as the first of these tensors.
extern "C" __attribute__((visibility("default"))) uintptr_t ft_first_word(const ft::HeldTensors* held);
// TensorLook::look.
extern "C" __attribute__((visibility("default"))) int ft_look(const void* tensor, ft::Sight* to);
