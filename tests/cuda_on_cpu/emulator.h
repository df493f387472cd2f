// Runs CUDA kernels on the CPU, for tests: what a kernel does is then seen by the compiler's sanitizers.
//
// The threads of a block are fibers of one thread of the system. A fiber runs until it waits for others, so a launch
// costs no system threads and is the same each time. ThreadSanitizer is told that fibers are threads, and what orders
// their accesses: __syncthreads and __syncwarp do, a shuffle does not, atomics do. So it reports a missing barrier,
// although nothing runs at the same time.
#pragma once
#include <cstdint>
#include <functional>

namespace emu {

struct Index {
  unsigned x = 1, y = 1, z = 1;
};

// Of the fiber that asks.
Index thread_index();
Index block_index();
Index block_size();
Index grid_size();

// Waits for all threads of the block. Ends the program if some can never come.
void sync_threads();
// Waits for the lanes of `mask`, all of which must come.
void sync_warp(unsigned mask);
// The value that lane `source` of the warp has given.
uint64_t exchange(unsigned mask, uint64_t value, int source);
unsigned ballot(unsigned mask, bool predicate);

// Runs `kernel` for every thread of every block; returns when all have.
void launch(Index grid, Index block, const std::function<void()>& kernel);

// What the current stream of a device is: a number, as nothing waits for anything here.
uintptr_t current_stream();
// Whether this launch, or this allocation of a tensor, is to fail.
bool launch_fails();
bool allocation_fails();
// Why allocations that fail do.
enum Reason { kNoMemory, kAnother, kNotTold };
Reason reason_of_failure();

// How many blocks are resident at once on the device that is emulated.
int64_t resident_blocks();

}  // namespace emu

extern "C" {
void emu_set_resident_blocks(int64_t blocks);
// How many kernels have been launched since the program began.
int64_t emu_launches();
// How many copies to the device there have been since then, and of how many bytes.
int64_t emu_copies();
int64_t emu_copied_bytes();
// Which stream is the current one; 0 at first.
void emu_set_current_stream(int64_t stream);
// How many launches from now on go well before one fails; negative, as at first, for all.
void emu_fail_launch_after(int64_t launches);
// The same of tensors that the library allocates.
void emu_fail_allocation_after(int64_t allocations);
// Why: 0, as at first, for want of memory, 1 for another reason, 2 with no word, as with torch 2.11.
void emu_set_reason_of_failure(int reason);
// How many events have been recorded, and after how many any recorded one is yet to happen; negative, as at first, for
// none. How often any has been asked, and how many pieces of pinned memory there are.
int64_t emu_event_records();
void emu_set_events_pending_after(int64_t records);
int64_t emu_event_queries();
int64_t emu_pinned();
// What is called first by cudaHostAlloc and cudaEventQuery, as by another thread that comes between; null for nothing.
void emu_set_between(void (*between)());
// The function of CUDA's runtime that fails when it is called, of those below that ask; null for none.
void emu_set_failing(const char* function);
// Whether streams say that they are being captured. Objects that a graph would own are kept until emu_destroy_graph.
void emu_set_capturing(int capturing);
void emu_destroy_graph();
}
