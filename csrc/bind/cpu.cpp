#include "bind/operators.h"

STABLE_TORCH_LIBRARY_IMPL(fusedtrain, CPU, m) { ft::implement_operators(m); }
