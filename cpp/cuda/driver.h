// What is used of libcuda beside the runtime: waiting, on a stream, for a value that the host writes; and describing tensors to
// the copy engine. No header of the driver is needed: numbers are those of cuda.h.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

#include "core/library.h"

namespace rz::cuda {

struct Driver {
  LibraryReport report;
  int (*cuDriverGetVersion)(int* version) = nullptr;
  // Optional: a stream waits until *address >= value. Without it, ordering device work behind host work blocks the caller.
  int (*cuStreamWaitValue64)(cudaStream_t stream, unsigned long long address, unsigned long long value, unsigned flags) = nullptr;
  // Optional, since CUDA 12.
  int (*cuTensorMapEncodeTiled)(void* map, int dtype, uint32_t rank, void* data, const uint64_t* size, const uint64_t* stride, const uint32_t* box,
                                const uint32_t* step, int interleave, int swizzle, int l2_promotion, int beyond) = nullptr;
};

constexpr int kTensorMapFloat16 = 6, kTensorMapBFloat16 = 9;  // CUtensorMapDataType
constexpr int kTensorMapPromote128 = 2;                       // CUtensorMapL2promotion

// Looked for once.
const Driver& driver();

}  // namespace rz::cuda
