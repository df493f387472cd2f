// Which instruction set the CPU kernels use. Every kernel is compiled for each of them into one library.
#pragma once
#include <string>

namespace ft {

enum class Isa { kBaseline, kAvx2, kAvx512 };

// The best instruction set of this CPU, or the one that FUSEDTRAIN_CPU_ISA (baseline, avx2 or avx512) asks for. Decided
// once. Throws std::runtime_error if the variable asks for one that the CPU or the build lacks.
Isa isa();

const char* name(Isa isa);

}  // namespace ft

extern "C" {
// "avx2 (this CPU has baseline, avx2)".
__attribute__((visibility("default"))) const char* ft_cpu_isa();
// Why FUSEDTRAIN_CPU_ISA cannot be followed; empty if it can.
__attribute__((visibility("default"))) const char* ft_cpu_isa_error();
}
