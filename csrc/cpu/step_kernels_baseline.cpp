#include <cmath>
#include <cstdint>
#include <cstring>

#include "cpu/step_kernels.h"

#define FT_ISA isa_baseline
#include "cpu/step_kernels_impl.h"
