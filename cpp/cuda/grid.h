// Shapes of grids that kernels have in common.
#pragma once
#include <algorithm>
#include <cstdint>

#include "cuda/stream.h"

namespace rz::cuda {

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Blocks for `items` things of one thread each in a loop with the stride of the grid: as many as can be resident, no more.
inline unsigned blocks_for(int64_t items, int threads, const CudaStream& stream) {
  const auto& device = stream.context().properties();
  int64_t resident = static_cast<int64_t>(device.multiProcessorCount) * std::max(1, device.maxThreadsPerMultiProcessor / threads);
  return static_cast<unsigned>(std::min(ceil_div(items, threads), resident));
}

}  // namespace rz::cuda
