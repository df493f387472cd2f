#include "cpu/isa.h"

#include <cstdlib>
#include <stdexcept>

namespace ft {
namespace {

constexpr Isa kAll[] = {Isa::kBaseline, Isa::kAvx2, Isa::kAvx512};

bool has(Isa isa) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  switch (isa) {
    case Isa::kBaseline:
      return true;
    case Isa::kAvx2:
      return avx2;
    case Isa::kAvx512:
      return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  }
  return false;
#else
  return isa == Isa::kBaseline;
#endif
}

struct Choice {
  Isa isa = Isa::kBaseline;
  std::string error;
  std::string report;
};

Choice choose() {
  Choice choice;
  std::string here;
  for (const Isa isa : kAll) {
    if (!has(isa)) continue;
    choice.isa = isa;
    here += std::string(here.empty() ? "" : ", ") + name(isa);
  }
  const char* wanted = std::getenv("FUSEDTRAIN_CPU_ISA");
  if (wanted != nullptr && *wanted != '\0') {
    bool known = false;
    for (const Isa isa : kAll) {
      if (std::string(wanted) != name(isa)) continue;
      known = true;
      if (has(isa)) {
        choice.isa = isa;
      } else {
        choice.error = "this CPU does not have it";
      }
    }
    if (!known) choice.error = "there is no such instruction set";
    if (!choice.error.empty()) {
      choice.error = "fusedtrain: FUSEDTRAIN_CPU_ISA='" + std::string(wanted) +
                     "' cannot be followed: " + choice.error + "; unset it or choose one of " + here;
    }
  }
  choice.report = std::string(name(choice.isa)) + " (this CPU has " + here + ")";
  return choice;
}

const Choice& choice() {
  static const Choice chosen = choose();
  return chosen;
}

}  // namespace

Isa isa() {
  const Choice& chosen = choice();
  if (!chosen.error.empty()) throw std::runtime_error(chosen.error);
  return chosen.isa;
}

const char* name(Isa isa) {
  switch (isa) {
    case Isa::kBaseline:
      return "baseline";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512:
      return "avx512";
  }
  return "";
}

}  // namespace ft

const char* ft_cpu_isa() { return ft::choice().report.c_str(); }
const char* ft_cpu_isa_error() { return ft::choice().error.c_str(); }
