// The tasks of a plan run in parallel. Which thread runs a task is left to chance; nothing that is computed depends on
// it.
#pragma once
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>

#include "plan/chunks.h"

namespace ft {

// f(task) for every task, from the last to the first if `backward`: what a pass has read last is read next from the
// cache. Less than `serial` elements are not worth waking a thread for.
template <class F>
void for_tasks(const ChunkList& work, int64_t serial, bool backward, F&& f) {
  std::atomic<int64_t> next{0};
  const auto drain = [&](int64_t, int64_t) {
    for (int64_t k; (k = next.fetch_add(1, std::memory_order_relaxed)) < work.task_count;) {
      f(backward ? work.task_count - 1 - k : k);
    }
  };
  if (work.elements < serial || work.task_count < 2) {
    drain(0, 1);
  } else {
    const int64_t threads = std::min<int64_t>(torch::stable::get_num_threads(), work.task_count);
    torch::stable::parallel_for(0, threads, 1, drain);
  }
}

}  // namespace ft
