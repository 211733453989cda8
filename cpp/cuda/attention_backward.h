// What the kernels of attention backward share.
#pragma once
#include "cuda/attention.h"

namespace rz::cuda {

// What p is relative to, in base 2; a row that saw no key has nothing to be relative to.
__device__ __forceinline__ float base_of(float lse) { return lse == -INFINITY ? 0.0f : lse * kLog2e; }

// The head of a block, of queries or of keys, and the slot of its tile.
struct BackwardPlace {
  int head, slot;
  __device__ __forceinline__ BackwardPlace(int heads, bool last_first)
      : head(static_cast<int>(blockIdx.x) % heads),
        slot(static_cast<int>((last_first ? gridDim.x - 1 - blockIdx.x : blockIdx.x) / heads)) {}
};

// Queries that see some of the keys j … j + keys_there - 1.
__device__ __forceinline__ int first_query(const Span& span, int j) { return std::max(0, j - span.offset); }
__device__ __forceinline__ int end_of_queries(const Span& span, int j, int keys_there) {
  return std::min(span.queries, std::min(j + keys_there, span.keys) - 1 - span.offset + span.window);
}

}  // namespace rz::cuda
