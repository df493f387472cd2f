// The pure planner of a multi-tensor pass: which pieces of which tensors make up a task of work.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

namespace ft {

// A piece of one row. Every piece but a row's last is as long as the longest may be, kChunk elements where nobody says
// otherwise.
struct Chunk {
  int64_t row, begin, size;
};
constexpr int64_t kChunk = int64_t{1} << 15;

// What a chunk costs beside its elements, in elements: so that a task does not become thousands of tiny tensors.
constexpr int64_t kChunkOverhead = 64;

// Chunks of all rows, in order, and where each task begins among them: plain data that a library can be handed.
struct ChunkList {
  const Chunk* chunks;
  const int64_t* tasks;  // task_count + 1 of them: the first chunk of each, then the number of chunks
  int64_t chunk_count, task_count, elements;
};

// Cuts rows into chunks and gathers the chunks into tasks of about equal work. Empty rows have no chunk.
class Chunker {
 public:
  // Rows are added from the first to the last.
  void add(int64_t row, int64_t numel, int64_t longest = kChunk) {
    elements_ += numel;
    for (int64_t begin = 0; begin < numel; begin += longest) {
      const int64_t size = std::min(longest, numel - begin);
      chunks_.push_back({row, begin, size});
      work_ += size + kChunkOverhead;
      if (work_ >= kChunk) close();
    }
  }

  // To be called after the last row. The list points into this object.
  ChunkList finish() {
    if (work_ > 0) close();
    return {chunks_.data(), tasks_.data(), int64_t(chunks_.size()), int64_t(tasks_.size()) - 1, elements_};
  }

 private:
  void close() {
    tasks_.push_back(int64_t(chunks_.size()));
    work_ = 0;
  }

  std::vector<Chunk> chunks_;
  std::vector<int64_t> tasks_ = {0};
  int64_t elements_ = 0, work_ = 0;
};

}  // namespace ft
