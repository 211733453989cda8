// The one way to start a kernel, so that sources are C++ that the emulator compiles too.
#pragma once
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <tuple>
#include <utility>

#include "cuda/check.h"
#include "cuda/shared_memory.h"
#include "cuda/stream.h"

namespace rz::cuda {

// An empty grid is no launch. Errors of the arguments throw here, those of the kernel where somebody waits.
template <class... Params, class... Args>
void launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes, CudaStream& stream, Args&&... args) {
  static_assert(sizeof...(Params) == sizeof...(Args), "a kernel wants as many arguments as it has parameters");
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  std::tuple<Params...> values{static_cast<Params>(std::forward<Args>(args))...};
  std::apply(
      [&](auto&... value) {
        void* pointers[] = {const_cast<void*>(static_cast<const void*>(&value))..., nullptr};
        auto* function = reinterpret_cast<const void*>(kernel);
        stream.context().before_launch(function);
        allow_shared(function, stream.context().device(), shared_bytes);
        CudaStream::Command command(stream);
        check(cudaLaunchKernel(function, grid, block, pointers, shared_bytes, stream.handle()), "launching a kernel");
      },
      values);
}

}  // namespace rz::cuda
