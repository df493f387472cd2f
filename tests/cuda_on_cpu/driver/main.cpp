// Runs every CUDA kernel on the CPU for small, odd and empty sizes, every alignment, type and rule, without torch, to
// be compiled under a sanitizer: what it finds ends the program. Prints 'N cases, M wrong'.
//
//     driver [act] [step] [norm]       by default all
#include <cstring>

#include "driver/check.h"

int main(int count, char** names) {
  ft::Tally tally;
  const auto wanted = [&](const char* name) {
    for (int k = 1; k < count; ++k) {
      if (std::strcmp(names[k], name) == 0) return true;
    }
    return count < 2;
  };
  if (wanted("act")) ft::act_cases(tally);
  if (wanted("step")) ft::step_cases(tally);
  if (wanted("norm")) ft::norm_cases(tally);
  std::printf("%lld cases, %lld wrong\n", static_cast<long long>(tally.cases), static_cast<long long>(tally.wrong));
  return tally.wrong == 0 && tally.cases > 0 ? 0 : 1;
}
