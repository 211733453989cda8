// In place of cpp/cuda where the addon is built without it.
#include "core/cuda.h"
#include "core/error.h"

namespace rz::cuda {

static constexpr const char* kReason = "this addon was built without CUDA (build it where nvcc is found, with RANKZERO_CUDA=on)";

bool is_built() { return false; }

CachingAllocator::Sizes block_sizes() { return kBlockSizes; }

Description describe() {
  Description description;
  description.unavailable = kReason;
  return description;
}

std::unique_ptr<Backend> open(const std::vector<std::unique_ptr<Stream>>*, int) {
  fail("ERR_CUDA_UNAVAILABLE", "device cuda cannot be used: ", kReason);
}

}  // namespace rz::cuda
