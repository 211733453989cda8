// Virtual memory management of the driver: pages are pieces of one anonymous file, which may be mapped at several addresses, as
// pages of a device may. What is not mapped faults.
#include <cuda.h>
#include <sanitizer/asan_interface.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <map>
#include <mutex>
#include <set>

#include "cuda/driver.h"
#include "memory.h"
#include "queues.h"

// Structs and numbers that cpp/cuda has of its own.
using rz::cuda::MemoryAccess, rz::cuda::MemoryProperties;
static_assert(sizeof(MemoryProperties) == sizeof(CUmemAllocationProp) && sizeof(MemoryAccess) == sizeof(CUmemAccessDesc));
static_assert(offsetof(MemoryProperties, location_id) == offsetof(CUmemAllocationProp, location.id));
static_assert(offsetof(MemoryProperties, rdma) == offsetof(CUmemAllocationProp, allocFlags.gpuDirectRDMACapable));
static_assert(offsetof(MemoryAccess, flags) == offsetof(CUmemAccessDesc, flags));
static_assert(rz::cuda::kPinned == CU_MEM_ALLOCATION_TYPE_PINNED && rz::cuda::kOnDevice == CU_MEM_LOCATION_TYPE_DEVICE);
static_assert(rz::cuda::kReadWrite == CU_MEM_ACCESS_FLAGS_PROT_READWRITE && rz::cuda::kOutOfMemory == CUDA_ERROR_OUT_OF_MEMORY);
static_assert(rz::cuda::kVirtualMemoryAttribute == CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED);
static_assert(rz::cuda::kRdmaAttribute == CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_WITH_CUDA_VMM_SUPPORTED);

namespace {

constexpr size_t kPage = size_t{2} << 20;
constexpr CUresult kInvalid = CUDA_ERROR_INVALID_VALUE;

struct Pages {
  std::mutex mutex;
  int file = memfd_create("emulated device", MFD_CLOEXEC);
  uint64_t made = 0;
  std::set<uint64_t> free, used;               // by number, which is a handle less one
  std::map<uint64_t, size_t> reserved;         // address → bytes
  std::map<uint64_t, uint64_t> mapped;         // address → page
  bool is_reserved(uint64_t address, size_t bytes) const {
    auto range = reserved.upper_bound(address);
    return range != reserved.begin() && (--range, address + bytes <= range->first + range->second);
  }
};
Pages& pages() {
  static Pages all;
  return all;
}

void* at(uint64_t address) { return reinterpret_cast<void*>(address); }

}  // namespace

extern "C" {

CUresult cuMemGetAllocationGranularity(size_t* bytes, const CUmemAllocationProp*, CUmemAllocationGranularity_flags) {
  *bytes = kPage;
  return CUDA_SUCCESS;
}

CUresult cuMemAddressReserve(CUdeviceptr* address, size_t bytes, size_t, CUdeviceptr, unsigned long long) {
  if (bytes == 0 || bytes % kPage != 0) return kInvalid;
  void* room = mmap(nullptr, bytes + kPage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (room == MAP_FAILED) return CUDA_ERROR_OUT_OF_MEMORY;
  const auto begin = reinterpret_cast<uint64_t>(room), first = (begin + kPage - 1) / kPage * kPage;
  if (first > begin) munmap(room, first - begin);
  if (const uint64_t behind = begin + kPage - first) munmap(at(first + bytes), behind);
  std::lock_guard lock(pages().mutex);
  pages().reserved[*address = first] = bytes;
  return CUDA_SUCCESS;
}

CUresult cuMemAddressFree(CUdeviceptr address, size_t bytes) {
  std::lock_guard lock(pages().mutex);
  auto range = pages().reserved.find(address);
  auto page = pages().mapped.lower_bound(address);
  if (range == pages().reserved.end() || range->second != bytes || (page != pages().mapped.end() && page->first < address + bytes)) return kInvalid;
  pages().reserved.erase(range);
  munmap(at(address), bytes);
  return CUDA_SUCCESS;
}

CUresult cuMemCreate(CUmemGenericAllocationHandle* handle, size_t bytes, const CUmemAllocationProp*, unsigned long long) {
  if (bytes != kPage) return kInvalid;
  if (!rz::emulator::take_memory(bytes)) return CUDA_ERROR_OUT_OF_MEMORY;
  Pages& all = pages();
  std::lock_guard lock(all.mutex);
  if (all.free.empty()) {
    if (ftruncate(all.file, static_cast<off_t>((all.made + 1) * kPage)) != 0) return CUDA_ERROR_OUT_OF_MEMORY;
    all.free.insert(all.made++);
  }
  const uint64_t page = *all.free.begin();
  all.free.erase(page);
  all.used.insert(page);
  *handle = page + 1;
  return CUDA_SUCCESS;
}

// Memory is the device's again when no address has it any more.
CUresult cuMemRelease(CUmemGenericAllocationHandle handle) {
  if (!rz::emulator::expect_no_wait_for_host("cuMemRelease")) return CUDA_ERROR_LAUNCH_FAILED;
  Pages& all = pages();
  std::lock_guard lock(all.mutex);
  if (!all.used.erase(handle - 1)) return kInvalid;
  for (const auto& [address, page] : all.mapped)
    if (page == handle - 1) return kInvalid;
  all.free.insert(handle - 1);
  rz::emulator::give_memory(kPage);
  return CUDA_SUCCESS;
}

CUresult cuMemMap(CUdeviceptr address, size_t bytes, size_t offset, CUmemGenericAllocationHandle handle, unsigned long long) {
  Pages& all = pages();
  std::lock_guard lock(all.mutex);
  const bool valid = bytes == kPage && offset == 0 && address % kPage == 0 && all.used.contains(handle - 1);
  if (!valid || !all.is_reserved(address, bytes) || !all.mapped.try_emplace(address, handle - 1).second) return kInvalid;
  return CUDA_SUCCESS;
}

CUresult cuMemSetAccess(CUdeviceptr address, size_t bytes, const CUmemAccessDesc*, size_t) {
  Pages& all = pages();
  std::lock_guard lock(all.mutex);
  for (uint64_t page = address; page < address + bytes; page += kPage) {
    auto mapped = all.mapped.find(page);
    if (mapped == all.mapped.end()) return kInvalid;
    const auto offset = static_cast<off_t>(mapped->second * kPage);
    if (mmap(at(page), kPage, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, all.file, offset) == MAP_FAILED) return CUDA_ERROR_OUT_OF_MEMORY;
  }
  return CUDA_SUCCESS;
}

CUresult cuMemUnmap(CUdeviceptr address, size_t bytes) {
  if (!rz::emulator::expect_no_wait_for_host("cuMemUnmap")) return CUDA_ERROR_LAUNCH_FAILED;
  Pages& all = pages();
  std::lock_guard lock(all.mutex);
  for (uint64_t page = address; page < address + bytes; page += kPage) {
    if (!all.mapped.erase(page)) return kInvalid;
    __asan_unpoison_memory_region(at(page), kPage);
    mmap(at(page), kPage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
  }
  return CUDA_SUCCESS;
}

}  // extern "C"
