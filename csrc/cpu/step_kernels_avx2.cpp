#include <cmath>
#include <cstdint>
#include <cstring>

#include "cpu/step_kernels.h"

#if defined(__x86_64__)
#define FT_ISA isa_avx2
#include "cpu/step_kernels_impl.h"
#endif
