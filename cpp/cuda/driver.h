// What is used of libcuda beside the runtime: waiting, on a stream, for a value that the host writes; and describing tensors to
// the copy engine. No header of the driver is needed: numbers are those of cuda.h.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

#include "core/library.h"

namespace rz::cuda {

struct Driver {
  LibraryReport report;
  int version = 0;  // the newest CUDA that it knows, as 13000; 0: no driver
  int (*cuDriverGetVersion)(int* version) = nullptr;
  // Optional: a stream waits until *address >= value. Without it, ordering device work behind host work blocks the caller.
  int (*cuStreamWaitValue64)(cudaStream_t stream, unsigned long long address, unsigned long long value, unsigned flags) = nullptr;
  int (*cuDeviceGet)(int* device, int ordinal) = nullptr;
  int (*cuDeviceGetAttribute)(int* value, int attribute, int device) = nullptr;
  // Optional, since CUDA 12.
  int (*cuTensorMapEncodeTiled)(void* map, int dtype, uint32_t rank, void* data, const uint64_t* size, const uint64_t* stride, const uint32_t* box,
                                const uint32_t* step, int interleave, int swizzle, int l2_promotion, int beyond) = nullptr;

  // Whether cuStreamWaitValue64 works on a device; not all drivers and virtual machines let it.
  bool waits_for_values(int ordinal) const {
    constexpr int kCanUse64BitStreamMemOps = 122;
    int device = 0, can = 0;
    return cuStreamWaitValue64 && cuDeviceGet && cuDeviceGetAttribute && cuDeviceGet(&device, ordinal) == 0 &&
           cuDeviceGetAttribute(&can, kCanUse64BitStreamMemOps, device) == 0 && can != 0;
  }
};

constexpr int kTensorMapFloat16 = 6, kTensorMapBFloat16 = 9;  // CUtensorMapDataType
constexpr int kTensorMapPromote128 = 2;                       // CUtensorMapL2promotion

// 12040 as "12.4".
std::string version_text(int version);

// Looked for once.
const Driver& driver();

}  // namespace rz::cuda
