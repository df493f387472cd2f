// Runs the CUDA kernels of one part on the CPU for small, odd and empty sizes, every alignment, type and rule, without
// torch, to be compiled under a sanitizer: what it finds ends the program. Prints 'N cases, M wrong'.
//
//     driver [few]       few: what is worth the thread sanitizer's time
#include <cstring>

#include "driver/check.h"

int main(int count, char** words) {
  ft::Tally tally;
  tally.few = count > 1 && std::strcmp(words[1], "few") == 0;
  ft::cases(tally);
  std::printf("%lld cases, %lld wrong\n", static_cast<long long>(tally.cases), static_cast<long long>(tally.wrong));
  return tally.wrong == 0 && tally.cases > 0 ? 0 : 1;
}
