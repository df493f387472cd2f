#include <cstdint>
#include <cstring>

#include "cpu/act_kernels.h"
#include "rules/philox.h"

#if defined(__x86_64__)
#define FT_ISA isa_avx512
#include "cpu/act_kernels_impl.h"
#endif
