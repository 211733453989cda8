// What the attention kernels share: where a block works, and which keys a query sees.
#pragma once
#include "cuda/grid.h"
#include "cuda/vec.h"
#include "ops/attention.h"

namespace rz::cuda {

constexpr float kLog2e = 1.44269504088896341f, kLn2 = 0.693147180559945309f;
constexpr int kNoWindow = 0x3fffffff;  // more than any sequence has keys

struct AttentionShape {
  const int32_t *cu_q, *cu_k;  // (sequences + 1)
  int sequences, heads, kv_heads, dim, window;
  int64_t q_rows;
  float scale;
  bool aligned;  // rows of all operands begin at multiples of 16 bytes
};

// One sequence. Queries and keys are counted from its first; query i sees the keys of (last_key(i) - window, last_key(i)].
struct Span {
  int64_t q0, k0;
  int queries, keys;
  int offset, window;
  __device__ __forceinline__ Span(const AttentionShape& a, int s)
      : q0(a.cu_q[s]), k0(a.cu_k[s]), queries(a.cu_q[s + 1] - a.cu_q[s]), keys(a.cu_k[s + 1] - a.cu_k[s]),
        offset(keys - queries), window(a.window > 0 ? a.window : kNoWindow) {}
  __device__ __forceinline__ int last_key(int i) const { return i + offset; }
  __device__ __forceinline__ int first_key(int i) const { return std::max(0, last_key(i) - (window - 1)); }
  __device__ __forceinline__ bool sees(int i, int j) const {
    const int back = last_key(i) - j;
    return back >= 0 && back < window;
  }
  // Of the queries and the keys of two ranges: whether some see some, and whether all see all.
  __device__ __forceinline__ bool some(int i, int queries_there, int j, int keys_there) const {
    return last_key(i + queries_there - 1) >= j && last_key(i) - (j + keys_there - 1) < window;
  }
  __device__ __forceinline__ bool all(int i, int queries_there, int j, int keys_there) const {
    return last_key(i) >= j + keys_there - 1 && last_key(i + queries_there - 1) - j < window;
  }
};

// A block takes a tile of rows of one sequence. The host knows the lengths only in sum, so tiles have slots: those of
// sequence s begin at slot cu[s] / rows + s, and behind its last tile at most one is left empty.
inline int64_t tile_slots(int64_t all_rows, int64_t sequences, int rows) { return all_rows / rows + sequences; }

struct Slot {
  int sequence, row;  // the first row of the tile, counted from the sequence's first
  __device__ __forceinline__ Slot(const int32_t* cu, int sequences, int slot, int rows) {
    int low = 0, high = sequences - 1;  // the last sequence that begins at or before the slot
    while (low < high) {
      const int middle = (low + high + 1) / 2;
      if (cu[middle] / rows + middle <= slot) low = middle;
      else high = middle - 1;
    }
    sequence = low;
    row = (slot - (cu[low] / rows + low)) * rows;
  }
};

inline unsigned attention_blocks(const char* op, int64_t slots, int64_t heads) {
  if (slots * heads > 0x7fffffff) fail("ERR_SHAPE", "[", op, "] on device cuda has too many rows: ", slots * heads, " blocks");
  return static_cast<unsigned>(slots * heads);
}

constexpr int kMostHeadDim = 256;

template <class... Views>
AttentionShape attention_shape(const char* op, const View& cu_q, const View& cu_k, int64_t sequences, int64_t heads, int64_t kv_heads,
                               int64_t dim, int64_t window, int64_t q_rows, float scale, const Views&... rows) {
  if (dim > kMostHeadDim) fail("ERR_SHAPE", "[", op, "] on device cuda head_dim is at most ", kMostHeadDim, " but is ", dim);
  const bool aligned = dim % kGroup == 0 && (is_aligned(rows.data) && ...);
  return {cu_q.as<int32_t>(), cu_k.as<int32_t>(), static_cast<int>(sequences), static_cast<int>(heads), static_cast<int>(kv_heads),
          static_cast<int>(dim), static_cast<int>(std::min<int64_t>(window, kNoWindow)), q_rows, scale, aligned};
}

}  // namespace rz::cuda
