// Caching allocator of host memory, ordered by stream. A freed block is reusable at once on its own stream; another
// stream that takes it first waits (on the stream, not on the host) for the events recorded when it was freed. Blocks are
// cut from ranges of address space, which cost memory only where they were used.
#pragma once
#include <array>
#include <atomic>
#include <mutex>
#include <vector>

#include "core/arena.h"
#include "core/storage.h"

namespace rz {

struct MemoryStats {
  std::array<int64_t, kMemoryKinds> current{}, peak{};  // bytes in use, by kind
  int64_t total = 0, total_peak = 0;                     // sum over kinds
  int64_t reserved = 0;                                  // held from the system: in use, or cached
};

class CpuAllocator : public std::enable_shared_from_this<CpuAllocator> {
 public:
  // `streams` is the runtime's table, indexed by Stream::index().
  explicit CpuAllocator(const std::vector<std::unique_ptr<Stream>>* streams) : streams_(streams) {}
  ~CpuAllocator();

  // 64-byte aligned, uninitialised. Errors: ERR_OUT_OF_MEMORY with the sizes asked, in use and reserved.
  std::shared_ptr<Storage> allocate(size_t bytes, Stream* home, MemoryKind kind);
  // Counts memory that was allocated elsewhere (shared segments) under `kind`.
  void account(MemoryKind kind, int64_t delta);
  MemoryStats stats() const;
  void reset_peak();
  // Returns cached blocks to the system. The caller has synchronised all streams.
  void trim();

  // From now on blocks are addresses without memory; sizes, reuse and statistics stay exact. Before the first allocation.
  void make_dry() { dry_ = true; }
  // Addresses of no memory, never the same twice: touching them faults.
  void* dry_address(size_t bytes);

 private:
  friend class CpuStorage;
  // Small blocks apart from large ones, which they would keep from coalescing.
  struct Pool {
    Arena arena;
    size_t range_bytes;  // of a new range, at least
  };
  Pool& pool_for(size_t bytes) { return bytes < kLarge ? small_ : large_; }
  bool grow(Pool& pool, size_t bytes);
  void release(Arena::Block block, MemoryKind kind);
  std::byte* map_range(size_t bytes);

  const std::vector<std::unique_ptr<Stream>>* streams_;
  mutable std::mutex mutex_;
  static constexpr size_t kLarge = size_t{256} << 10;
  Pool small_{{}, size_t{4} << 20}, large_{{}, size_t{1} << 30};
  MemoryStats stats_;
  bool dry_ = false;
  std::atomic<uintptr_t> next_dry_address_{uintptr_t{1} << 48};  // above what a process can map
};

}  // namespace rz
