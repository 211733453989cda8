// Element-wise work: one pass over flat tensors, eight elements a thread.
#pragma once
#include "cuda/grid.h"
#include "cuda/launch.h"
#include "cuda/vec.h"

namespace rz::cuda {

// Calls map(first element, count of this group) for every group of eight.
template <class Map>
static __global__ void each_group(int64_t numel, Map map) {
  const int64_t groups = (numel + kGroup - 1) / kGroup, stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t g = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; g < groups; g += stride) {
    const int64_t first = g * kGroup, left = numel - first;
    map(first, left < kGroup ? left : kGroup);
  }
}

template <class Map>
void over_groups(int64_t numel, CudaStream& stream, const Map& map) {
  constexpr int kThreads = 256;
  launch(each_group<Map>, blocks_for(ceil_div(numel, kGroup), kThreads, stream), kThreads, 0, stream, numel, map);
}

}  // namespace rz::cuda
