// Host memory: ranges are address space, which costs memory only where it was used.
#pragma once
#include <atomic>

#include "core/allocator.h"

namespace rz {

class CpuAllocator final : public CachingAllocator {
 public:
  explicit CpuAllocator(const std::vector<std::unique_ptr<Stream>>* streams);
  ~CpuAllocator() override { trim(); }

  // From now on blocks are addresses without memory; sizes, reuse and statistics stay exact. Before the first allocation.
  void make_dry() { dry_ = true; }
  // Addresses of no memory, never the same twice: touching them faults.
  void* dry_address(size_t bytes);

 private:
  std::byte* map_range(size_t bytes) override;
  void unmap_range(std::byte* data, size_t bytes) override;
  void drop_pages(std::byte* data, size_t bytes) override;
  [[noreturn]] void out_of_memory(size_t bytes, MemoryKind kind) const override;

  bool dry_ = false;
  std::atomic<uintptr_t> next_dry_address_{uintptr_t{1} << 48};  // above what a process can map
};

}  // namespace rz
