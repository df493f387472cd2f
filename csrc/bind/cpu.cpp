#include "bind/operators.h"
#include "cpu/held_tensors.h"

STABLE_TORCH_LIBRARY_IMPL(fusedtrain, CPU, m) { ft::implement_operators(m); }

// Not in the schemas: no backend has another, and what it returns means nothing outside of this process.
STABLE_TORCH_LIBRARY_FRAGMENT(fusedtrain, m) { m.def("hold_tensors(Tensor[] tensors) -> int"); }

STABLE_TORCH_LIBRARY_IMPL(fusedtrain, CompositeExplicitAutograd, m) {
  m.impl("hold_tensors", TORCH_BOX(&ft::hold_tensors));
}
