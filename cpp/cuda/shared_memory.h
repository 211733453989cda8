// Dynamic shared memory beyond what every kernel may have. A kernel is allowed more once, on each device, and again only where a
// launch wants more than those before.
#pragma once
#include <cuda_runtime_api.h>

#include <map>
#include <mutex>
#include <utility>

#include "cuda/check.h"

namespace rz::cuda {

inline void allow_shared(const void* kernel, int device, size_t bytes) {
  constexpr size_t kAllowed = size_t{48} << 10;
  if (bytes <= kAllowed) return;
  static std::mutex mutex;
  static std::map<std::pair<int, const void*>, size_t> allowed;
  std::lock_guard lock(mutex);
  size_t& most = allowed[{device, kernel}];
  if (bytes <= most) return;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)), "asking for shared memory");
  most = bytes;
}

}  // namespace rz::cuda
