// The two halves of the columns of a gated input (*, 2 D), seen from an element of its output (*, D).
#pragma once
#include "cuda/act_walk.cuh"

namespace ft {

// The column of a thread's chunks.
struct GatedColumns {
  int64_t column;

  template <class Op>
  __device__ __forceinline__ GatedColumns(const Op&, int64_t column) : column(column) {}
};

template <class T>
struct GateAndUpChunks {
  Chunk<T> gate, up;
};

template <class T>
struct GateAndUp {
  using Wide = WideOf<T>;

  const T* x;
  Operand<T> bias;
  int64_t width;

  explicit GateAndUp(const ActLaunch& call) : x(static_cast<const T*>(call.x)), bias(call.bias), width(call.width) {}

  static bool all_aligned(const ActLaunch& call) { return is_aligned(call.x) && is_aligned(call.bias.data); }

  // Where the gate of element i is: rows before it have twice the elements.
  __device__ __forceinline__ static int64_t gate_index(int64_t i, int64_t column) { return 2 * i - column; }

  __device__ __forceinline__ GateAndUpChunks<T> load(int64_t start, const GatedColumns& columns) const {
    const int64_t gate = gate_index(start, columns.column);
    return {load_chunk(x, gate), load_chunk(x, gate + width)};
  }
  __device__ __forceinline__ void unpack(const GatedColumns& columns, const GateAndUpChunks<T>& chunks,
                                         Wide (&gate)[kChunk], Wide (&up)[kChunk]) const {
    ft::unpack(chunks.gate, gate);
    ft::unpack(chunks.up, up);
    if (!bias.exists) return;
    bias.add_to(gate, columns.column);
    bias.add_to(up, columns.column + width);
  }

  __device__ __forceinline__ Wide gate(int64_t i, int64_t column) const {
    const Wide v = widen<Wide>(x[gate_index(i, column)]);
    return bias.exists ? v + bias[column] : v;
  }
  __device__ __forceinline__ Wide up(int64_t i, int64_t column) const {
    const Wide v = widen<Wide>(x[gate_index(i, column) + width]);
    return bias.exists ? v + bias[column + width] : v;
  }
};

}  // namespace ft
