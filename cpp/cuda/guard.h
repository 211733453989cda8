// Where blocks of device memory lie, and what surrounds them. On a device: nothing. The emulator has a header of the same
// name, which leaves gaps that must not be touched and fills what was not written yet.
#pragma once
#include <cstddef>

namespace rz::cuda {

class CudaStream;

constexpr size_t kBlockGap = 0;

inline void guard_block(void*, size_t, size_t, CudaStream&) {}

}  // namespace rz::cuda
