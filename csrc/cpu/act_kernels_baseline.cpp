#include <cstdint>
#include <cstring>

#include "cpu/act_kernels.h"
#include "rules/philox.h"

#define FT_ISA isa_baseline
#include "cpu/act_kernels_impl.h"
