#include "core/cpu_allocator.h"

#include <sys/mman.h>

#include "core/error.h"

namespace rz {

constexpr uintptr_t kPage = 4096, kHuge = uintptr_t{2} << 20;

static uintptr_t round_up(uintptr_t address, uintptr_t unit) { return (address + unit - 1) / unit * unit; }

CpuAllocator::CpuAllocator(const std::vector<std::unique_ptr<Stream>>* streams)
    : CachingAllocator(Device::Cpu, streams, {512, 0, kHuge, size_t{4} << 20, size_t{1} << 30}) {}

// On a huge-page boundary.
std::byte* CpuAllocator::map_range(size_t bytes) {
  if (dry_) return static_cast<std::byte*>(dry_address(bytes));
  void* room = mmap(nullptr, bytes + kHuge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (room == MAP_FAILED) return nullptr;
  auto* begin = static_cast<std::byte*>(room);
  size_t before = round_up(reinterpret_cast<uintptr_t>(begin), kHuge) - reinterpret_cast<uintptr_t>(begin);
  if (before > 0) munmap(begin, before);
  if (before < kHuge) munmap(begin + before + bytes, kHuge - before);
  madvise(begin + before, bytes, MADV_HUGEPAGE);
  return begin + before;
}

void CpuAllocator::unmap_range(std::byte* data, size_t bytes) {
  if (!dry_) munmap(data, bytes);
}

void CpuAllocator::drop_pages(std::byte* data, size_t bytes) {
  auto begin = round_up(reinterpret_cast<uintptr_t>(data), kPage), end = (reinterpret_cast<uintptr_t>(data) + bytes) / kPage * kPage;
  if (!dry_ && begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

void* CpuAllocator::dry_address(size_t bytes) {
  return reinterpret_cast<void*>(next_dry_address_.fetch_add((bytes + 63) & ~size_t{63}));
}

void CpuAllocator::out_of_memory(size_t bytes, MemoryKind kind) const {
  MemoryStats now = stats();
  fail("ERR_OUT_OF_MEMORY", "out of host memory: ", bytes, " bytes of ", name_of(kind), " were asked for, ", now.total, " are in use (",
       in_use_by_kind(), ") and ", now.reserved, " reserved");
}

}  // namespace rz
