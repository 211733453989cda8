// cpp/cuda/launch.h for the emulator: a launch becomes a task of the stream.
#pragma once
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>
#include <tuple>
#include <utility>

#include "block.h"
#include "cuda/check.h"
#include "cuda/stream.h"
#include "queues.h"

namespace rz::cuda {

template <class... Params, class... Args>
void launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes, CudaStream& stream, Args&&... args) {
  static_assert(sizeof...(Params) == sizeof...(Args), "a kernel wants as many arguments as it has parameters");
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  constexpr size_t kMostShared = size_t{227} << 10;
  const unsigned threads = block.x * block.y * block.z;
  if (threads == 0 || threads > 1024 || shared_bytes > kMostShared || grid.y > 65535 || grid.z > 65535)
    check(cudaErrorInvalidConfiguration, "launching a kernel");
  stream.context().before_launch(reinterpret_cast<const void*>(kernel));
  emulator::first_use(reinterpret_cast<const void*>(kernel), "loading a kernel");
  std::tuple<Params...> values{static_cast<Params>(std::forward<Args>(args))...};
  CudaStream::Command command(stream);
  emulator::enqueue(stream.handle(), [=, seed = emulator::next_seed()] {
    emulator::run_grid(grid, block, shared_bytes, [&] { std::apply(kernel, values); }, seed);
  });
}

}  // namespace rz::cuda
