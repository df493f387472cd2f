// Compiled without ThreadSanitizer, which must see kernels and not the scheduler: it is told what matters.
#include "emulator.h"

#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#if defined(EMU_ADDRESS_SANITIZER)
#include <sanitizer/asan_interface.h>
#endif
#if defined(EMU_THREAD_SANITIZER)
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
}
constexpr unsigned kNoOrder = 1;  // __tsan_switch_to_fiber_no_sync
#endif

namespace emu {
namespace {

constexpr unsigned kWarp = 32;
constexpr size_t kStack = size_t{256} << 10;

std::atomic<int64_t> launches{0}, resident{2};

[[noreturn]] void fail(const char* what) {
  std::fprintf(stderr, "CUDA on the CPU: %s\n", what);
  std::abort();
}

// Accesses before order() of those who come happen before those after await() of those who leave.
struct Order {
  void release() {
#if defined(EMU_THREAD_SANITIZER)
    __tsan_release(this);
#endif
  }
  void acquire() {
#if defined(EMU_THREAD_SANITIZER)
    __tsan_acquire(this);
#endif
  }
};

// Memory for the stack of a fiber, with a page below it that nobody may touch.
class Stack {
 public:
  Stack() {
    page_ = size_t(sysconf(_SC_PAGESIZE));
    void* const memory = mmap(nullptr, kStack + page_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) fail("no memory for the stack of a thread");
    mprotect(memory, page_, PROT_NONE);
    begin_ = static_cast<char*>(memory);
  }
  ~Stack() { munmap(begin_, kStack + page_); }
  Stack(const Stack&) = delete;
  Stack& operator=(const Stack&) = delete;
  char* bottom() const { return begin_ + page_; }

 private:
  char* begin_;
  size_t page_;
};

enum class State { kReady, kAtBlock, kAtWarp, kDone };

struct Fiber {
  ucontext_t context;
  State state = State::kReady;
  unsigned mask = 0;  // of the lanes it waits for
  void* sanitizer = nullptr;
};

struct Warp {
  uint64_t given[2][kWarp] = {};
  unsigned arrived = 0;
  int turn[kWarp] = {};  // which of `given` a lane uses next: nobody overwrites what another has yet to read
  Order order;
};

class Block {
 public:
  Block(Index grid, Index size, Index index, const std::function<void()>& kernel);
  void run();

  Index grid, size, index;
  unsigned current = 0;

  void wait(State state, unsigned mask);
  Warp& warp() { return warps_[current / kWarp]; }
  Order order;

 private:
  static void enter();
  void resume(unsigned thread);
  void leave(bool for_ever);
  bool release_block();
  bool release_warp(unsigned warp);

  const std::function<void()>& kernel_;
  std::vector<Fiber> fibers_;
  std::vector<Warp> warps_;
  ucontext_t scheduler_ = {};
  void* scheduler_sanitizer_ = nullptr;
  [[maybe_unused]] void* fake_stack_ = nullptr;
  [[maybe_unused]] const void* scheduler_bottom_ = nullptr;
  [[maybe_unused]] size_t scheduler_size_ = 0;
  Order begin_, end_;
};

thread_local Block* block = nullptr;

// Stacks are made once for each thread of the system: a launch has hundreds of fibers.
std::vector<std::unique_ptr<Stack>>& stacks(size_t count) {
  thread_local std::vector<std::unique_ptr<Stack>> all;
  while (all.size() < count) all.push_back(std::make_unique<Stack>());
  return all;
}

Block::Block(Index grid, Index size, Index index, const std::function<void()>& kernel)
    : grid(grid), size(size), index(index), kernel_(kernel), fibers_(size.x), warps_((size.x + kWarp - 1) / kWarp) {
  const auto& memory = stacks(size.x);
  for (unsigned t = 0; t < size.x; ++t) {
    Fiber& fiber = fibers_[t];
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = memory[t]->bottom();
    fiber.context.uc_stack.ss_size = kStack;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, &Block::enter, 0);
#if defined(EMU_ADDRESS_SANITIZER)
    fiber.context.uc_stack.ss_size =
        0;  // else it forgets at every switch what it knows of a stack so large, and slowly
#endif
  }
}

void Block::enter() {
  Block& self = *block;
#if defined(EMU_ADDRESS_SANITIZER)
  __sanitizer_finish_switch_fiber(nullptr, &self.scheduler_bottom_, &self.scheduler_size_);
#endif
  self.begin_.acquire();
  self.kernel_();
  self.end_.release();
  self.fibers_[self.current].state = State::kDone;
  self.leave(true);
}

void Block::resume(unsigned thread) {
  Fiber& fiber = fibers_[thread];
  current = thread;
#if defined(EMU_ADDRESS_SANITIZER)
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(&fake_stack, fiber.context.uc_stack.ss_sp, kStack);
#endif
#if defined(EMU_THREAD_SANITIZER)
  if (fiber.sanitizer == nullptr) fiber.sanitizer = __tsan_create_fiber(0);
  __tsan_switch_to_fiber(fiber.sanitizer, kNoOrder);
#endif
  swapcontext(&scheduler_, &fiber.context);
#if defined(EMU_ADDRESS_SANITIZER)
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
}

void Block::leave(bool for_ever) {
  Fiber& fiber = fibers_[current];
#if defined(EMU_ADDRESS_SANITIZER)
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(for_ever ? nullptr : &fake_stack, scheduler_bottom_, scheduler_size_);
  if (for_ever) {  // the next fiber on this stack finds it without the marks of frames that never return
    const char* const top = static_cast<const char*>(fiber.context.uc_stack.ss_sp) + kStack;
    const char* const frame = static_cast<const char*>(__builtin_frame_address(0)) - 1024;
    ASAN_UNPOISON_MEMORY_REGION(frame, size_t(top - frame));
  }
#endif
#if defined(EMU_THREAD_SANITIZER)
  __tsan_switch_to_fiber(scheduler_sanitizer_, kNoOrder);
#endif
  if (for_ever) {
    setcontext(&scheduler_);
    fail("a thread went on after its end");
  }
  swapcontext(&fiber.context, &scheduler_);
#if defined(EMU_ADDRESS_SANITIZER)
  __sanitizer_finish_switch_fiber(fake_stack, &scheduler_bottom_, &scheduler_size_);
#endif
}

void Block::wait(State state, unsigned mask) {
  fibers_[current].state = state;
  fibers_[current].mask = mask;
  leave(false);
}

// Lets the threads go that wait for the block, if all do.
bool Block::release_block() {
  unsigned waiting = 0, done = 0;
  for (const Fiber& fiber : fibers_) {
    waiting += fiber.state == State::kAtBlock ? 1 : 0;
    done += fiber.state == State::kDone ? 1 : 0;
  }
  if (waiting == 0 || waiting + done < fibers_.size()) return false;
  if (done > 0) fail("__syncthreads, which other threads of the block have passed by and returned");
  for (Fiber& fiber : fibers_) fiber.state = State::kReady;
  return true;
}

// Lets the lanes of a warp go, if all that they wait for have come.
bool Block::release_warp(unsigned warp) {
  unsigned waiting = 0, mask = 0;
  const unsigned first = warp * kWarp, last = first + kWarp < size.x ? first + kWarp : size.x;
  for (unsigned t = first; t < last; ++t) {
    if (fibers_[t].state != State::kAtWarp) continue;
    waiting |= 1u << (t - first);
    mask |= fibers_[t].mask;
  }
  if (waiting == 0 || (mask & ~waiting) != 0) return false;
  for (unsigned t = first; t < last; ++t) {
    if (waiting >> (t - first) & 1) {
      if (fibers_[t].mask != mask) fail("lanes of a warp that wait for one another name different masks");
      fibers_[t].state = State::kReady;
    }
  }
  return true;
}

void Block::run() {
  block = this;
#if defined(EMU_THREAD_SANITIZER)
  scheduler_sanitizer_ = __tsan_get_current_fiber();
#endif
  begin_.release();
  // In turn from the first thread on and from the last: a result that depends on who is first shows.
  for (bool forward = true;; forward = !forward) {
    bool progress = false;
    for (unsigned k = 0; k < size.x; ++k) {
      const unsigned thread = forward ? k : size.x - 1 - k;
      if (fibers_[thread].state != State::kReady) continue;
      resume(thread);
      progress = true;
    }
    for (unsigned w = 0; w < warps_.size(); ++w) progress |= release_warp(w);
    progress |= release_block();
    if (progress) continue;
    for (const Fiber& fiber : fibers_) {
      if (fiber.state != State::kDone)
        fail("threads that wait for others that never come: a barrier in divergent code");
    }
    break;
  }
  end_.acquire();
#if defined(EMU_THREAD_SANITIZER)
  for (Fiber& fiber : fibers_) __tsan_destroy_fiber(fiber.sanitizer);
#endif
  block = nullptr;
}

}  // namespace

Index thread_index() { return {block->current, 0, 0}; }
Index block_index() { return block->index; }
Index block_size() { return block->size; }
Index grid_size() { return block->grid; }

void sync_threads() {
  block->order.release();
  block->wait(State::kAtBlock, 0);
  block->order.acquire();
}

void sync_warp(unsigned mask) {
  Warp& warp = block->warp();
  warp.order.release();
  block->wait(State::kAtWarp, mask);
  warp.order.acquire();
}

uint64_t exchange(unsigned mask, uint64_t value, int source) {
  Warp& warp = block->warp();
  const unsigned lane = block->current % kWarp;
  if ((mask >> lane & 1) == 0) fail("a lane that takes part in a shuffle is not in its mask");
  const int turn = warp.turn[lane];
  warp.turn[lane] ^= 1;
  warp.given[turn][lane] = value;
  block->wait(State::kAtWarp, mask);
  if (source < 0 || source >= int(kWarp) || (mask >> source & 1) == 0) return value;
  return warp.given[turn][source];
}

unsigned ballot(unsigned mask, bool predicate) {
  Warp& warp = block->warp();
  const unsigned lane = block->current % kWarp;
  const int turn = warp.turn[lane];
  exchange(mask, predicate ? 1 : 0, int(lane));
  unsigned votes = 0;
  for (unsigned k = 0; k < kWarp; ++k) {
    if (mask >> k & 1) votes |= unsigned(warp.given[turn][k] & 1) << k;
  }
  return votes;
}

void launch(Index grid, Index size, const std::function<void()>& kernel) {
  launches.fetch_add(1);
  if (size.y != 1 || size.z != 1 || size.x == 0 || size.x > 1024)
    fail("blocks of more than one dimension or 1024 threads");
  std::vector<Index> indices;
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) indices.push_back({x, y, z});
    }
  }
#if defined(EMU_THREAD_SANITIZER)
  // Each block in a thread of its own, which has its own __shared__ memory, and all at once, so that nothing orders
  // what two of them do but what the kernel does about it.
  constexpr size_t kAtOnce = 16;
  for (size_t first = 0; first < indices.size(); first += kAtOnce) {
    std::vector<std::thread> threads;
    for (size_t i = first; i < indices.size() && i < first + kAtOnce; ++i) {
      threads.emplace_back([&, i] { Block(grid, size, indices[i], kernel).run(); });
    }
    for (std::thread& thread : threads) thread.join();
  }
#else
  for (const Index index : indices) Block(grid, size, index, kernel).run();
#endif
}

int64_t resident_blocks() { return resident.load(); }

}  // namespace emu

void emu_set_resident_blocks(int64_t blocks) { emu::resident.store(blocks); }
int64_t emu_launches() { return emu::launches.load(); }
