// What is used of libcuda beside the runtime: waiting, on a stream, for a value that the host writes; describing tensors to the
// copy engine; and mapping pages of device memory at addresses. No header of the driver is needed: numbers are those of cuda.h.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

#include "core/library.h"

namespace rz::cuda {

// CUmemAllocationProp and CUmemAccessDesc.
struct MemoryProperties {
  int type, handle_types, location_type, location_id;
  void* unused;
  unsigned char compression, rdma;
  unsigned short usage;
  unsigned char reserved[4];
};
struct MemoryAccess {
  int location_type, location_id, flags;
};
using DeviceAddress = unsigned long long;
using PageHandle = unsigned long long;

struct Driver {
  LibraryReport report;
  int version = 0;  // the newest CUDA that it knows, as 13000; 0: no driver
  int (*cuDriverGetVersion)(int* version) = nullptr;
  // Optional: a stream waits until *address >= value. Without it, ordering device work behind host work blocks the caller.
  int (*cuStreamWaitValue64)(cudaStream_t stream, unsigned long long address, unsigned long long value, unsigned flags) = nullptr;
  int (*cuDeviceGet)(int* device, int ordinal) = nullptr;
  int (*cuDeviceGetAttribute)(int* value, int attribute, int device) = nullptr;
  // Optional: virtual memory management.
  int (*cuMemGetAllocationGranularity)(size_t* bytes, const MemoryProperties* properties, int option) = nullptr;
  int (*cuMemAddressReserve)(DeviceAddress* address, size_t bytes, size_t alignment, DeviceAddress wanted, unsigned long long flags) = nullptr;
  int (*cuMemAddressFree)(DeviceAddress address, size_t bytes) = nullptr;
  int (*cuMemCreate)(PageHandle* page, size_t bytes, const MemoryProperties* properties, unsigned long long flags) = nullptr;
  int (*cuMemRelease)(PageHandle page) = nullptr;
  int (*cuMemMap)(DeviceAddress address, size_t bytes, size_t offset, PageHandle page, unsigned long long flags) = nullptr;
  int (*cuMemUnmap)(DeviceAddress address, size_t bytes) = nullptr;
  int (*cuMemSetAccess)(DeviceAddress address, size_t bytes, const MemoryAccess* access, size_t count) = nullptr;
  // Optional, since CUDA 12.
  int (*cuTensorMapEncodeTiled)(void* map, int dtype, uint32_t rank, void* data, const uint64_t* size, const uint64_t* stride, const uint32_t* box,
                                const uint32_t* step, int interleave, int swizzle, int l2_promotion, int beyond) = nullptr;

  // Whether cuStreamWaitValue64 works on a device; not all drivers and virtual machines let it.
  bool waits_for_values(int ordinal) const {
    constexpr int kCanUse64BitStreamMemOps = 122;
    return cuStreamWaitValue64 && has(kCanUse64BitStreamMemOps, ordinal);
  }
  // An attribute of a device that is yes or no.
  bool has(int attribute, int ordinal) const {
    int device = 0, value = 0;
    return cuDeviceGet && cuDeviceGetAttribute && cuDeviceGet(&device, ordinal) == 0 && cuDeviceGetAttribute(&value, attribute, device) == 0 && value != 0;
  }
};

constexpr int kVirtualMemoryAttribute = 102, kRdmaAttribute = 110;  // CUdevice_attribute
constexpr int kPinned = 1, kOnDevice = 1, kReadWrite = 3;           // type of memory, of a location; access
constexpr int kOutOfMemory = 2;                                     // CUresult

constexpr int kTensorMapFloat16 = 6, kTensorMapBFloat16 = 9;  // CUtensorMapDataType
constexpr int kTensorMapPromote128 = 2;                       // CUtensorMapL2promotion

// 12040 as "12.4".
std::string version_text(int version);

// Looked for once.
const Driver& driver();

}  // namespace rz::cuda
