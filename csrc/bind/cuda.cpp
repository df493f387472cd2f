#include "bind/operators.h"

STABLE_TORCH_LIBRARY_IMPL(fusedtrain, CUDA, m) { ft::implement_operators(m); }
