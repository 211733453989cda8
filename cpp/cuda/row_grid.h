// Grids for rows of independent items: a block is as wide as a row, up to 256 threads, and takes as many rows as that leaves
// room for. Kernels go over rows with the stride of the grid and over items with that of the block.
#pragma once
#include <bit>

#include "cuda/grid.h"

namespace rz::cuda {

struct RowGrid {
  dim3 block, grid;

  RowGrid(int64_t rows, int64_t items, const CudaStream& stream) {
    constexpr unsigned kThreads = 256;
    const unsigned wide = std::min(kThreads, std::bit_ceil(static_cast<unsigned>(std::clamp<int64_t>(items, 1, kThreads))));
    block = dim3(wide, kThreads / wide);
    grid = dim3(items == 0 ? 0 : blocks_for(rows * wide, kThreads, stream));
  }
};

}  // namespace rz::cuda
