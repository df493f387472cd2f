// Times launches of kernels by events, in turn, and prints the medians as JSON. What they compute is not looked at.
#pragma once
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

inline void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s\n", cudaGetErrorString(error));
  std::exit(1);
}

template <class T>
T* device_memory(int64_t count) {
  void* memory = nullptr;
  check(cudaMalloc(&memory, size_t(count) * sizeof(T)));
  return static_cast<T*>(memory);
}

inline int rounds_of(int argc, char** argv) { return std::max(argc > 1 ? std::atoi(argv[1]) : 21, 1); }

struct Row {
  std::string name;
  double bytes;  // that it has to move
  std::function<void()> launch;
  std::vector<float> times = {};  // us

  double median() {
    std::sort(times.begin(), times.end());
    return times[times.size() / 2];
  }
};

// The first row is the copy that the others are compared with. Every round begins with another row. What keeps the
// device busy meanwhile lets the host get ahead, so that its launches are not in the times.
inline void time_and_print(std::vector<Row> rows, int rounds) {
  constexpr int64_t kBusy = int64_t{1} << 29;
  char* const busy = device_memory<char>(kBusy);
  cudaEvent_t before, after;
  check(cudaEventCreate(&before)), check(cudaEventCreate(&after));
  constexpr int kWarmup = 2;
  for (int round = 0; round < kWarmup + rounds; ++round) {
    for (size_t i = 0; i < rows.size(); ++i) {
      Row& row = rows[(i + size_t(round)) % rows.size()];
      check(cudaMemsetAsync(busy, round, size_t(kBusy)));
      check(cudaEventRecord(before));
      row.launch();
      check(cudaEventRecord(after));
      check(cudaEventSynchronize(after));
      float ms = 0;
      check(cudaEventElapsedTime(&ms, before, after));
      if (round >= kWarmup) row.times.push_back(1000 * ms);
    }
  }
  cudaDeviceProp device;
  check(cudaGetDeviceProperties(&device, 0));
  std::printf("{\"gpu\": \"%s\", \"rounds\": %d, \"rows\": [", device.name, rounds);
  const double of_copy = rows[0].bytes / rows[0].median();
  for (size_t i = 0; i < rows.size(); ++i) {
    std::printf("%s\n {\"name\": \"%s\", \"median_us\": %.1f, \"of_a_copy\": %.3f}", i > 0 ? "," : "",
                rows[i].name.c_str(), rows[i].median(), rows[i].bytes / rows[i].median() / of_copy);
  }
  std::printf("\n]}\n");
}
