// Opens the part of a file that is compiled for FT_ISA (isa_baseline, isa_avx2 or isa_avx512); isa_end.h closes it.
// Standard and rule headers must be included before: an inline function defined inside would be shared, as one weak
// symbol, with code for CPUs that lack these instructions. For that reason too everything inside is in namespace
// FT_ISA. No include guard: it is included once per instruction set.
#define FT_ISA_isa_baseline 1
#define FT_ISA_isa_avx2 2
#define FT_ISA_isa_avx512 3
#define FT_ISA_PASTE(isa) FT_ISA_##isa
#define FT_ISA_LEVEL_OF(isa) FT_ISA_PASTE(isa)
#define FT_ISA_LEVEL FT_ISA_LEVEL_OF(FT_ISA)

#if FT_ISA_LEVEL > 1
#include <immintrin.h>
#endif

#if FT_ISA_LEVEL == 2
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif
#elif FT_ISA_LEVEL == 3
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prefer-vector-width=512")
#endif
#endif
