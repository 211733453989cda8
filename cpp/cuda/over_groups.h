// Element-wise work: one pass over flat tensors or over rows, eight elements a thread.
#pragma once
#include "cuda/grid.h"
#include "cuda/launch.h"
#include "cuda/row_grid.h"
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

// The same row by row: calls map(row, first column, count) for every group of eight of a row.
template <class Map>
static __global__ void each_row_group(int64_t rows, int64_t columns, Map map) {
  const int64_t groups = (columns + kGroup - 1) / kGroup;
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y; row < rows; row += static_cast<int64_t>(gridDim.x) * blockDim.y)
    for (int64_t g = threadIdx.x; g < groups; g += blockDim.x) {
      const int64_t first = g * kGroup, left = columns - first;
      map(row, first, left < kGroup ? left : kGroup);
    }
}

template <class Map>
void over_row_groups(int64_t rows, int64_t columns, CudaStream& stream, const Map& map) {
  const RowGrid shape(rows, ceil_div(columns, kGroup), stream);
  launch(each_row_group<Map>, shape.grid, shape.block, 0, stream, rows, columns, map);
}

}  // namespace rz::cuda
