// Caching allocator of host memory, ordered by stream. A freed block is reusable at once on its own stream; another
// stream that takes it first waits (on the stream, not on the host) for the events recorded when it was freed.
#pragma once
#include <array>
#include <map>
#include <mutex>
#include <vector>

#include "core/storage.h"

namespace rz {

struct MemoryStats {
  std::array<int64_t, kMemoryKinds> current{}, peak{};  // bytes in use, by kind
  int64_t total = 0, total_peak = 0;                     // sum over kinds
  int64_t reserved = 0;                                  // held from the system, cached blocks included
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
  struct Block {
    void* data;
    size_t bytes;
    std::vector<Event> pending;
    Stream* home;
  };
  bool take(size_t want, Stream* home, Block& block);
  void release(Block block, MemoryKind kind);
  static size_t size_class(size_t bytes);
  void* system_allocate(size_t bytes);

  const std::vector<std::unique_ptr<Stream>>* streams_;
  mutable std::mutex mutex_;
  std::map<size_t, std::vector<Block>> free_;  // by size class
  MemoryStats stats_;
  bool dry_ = false;
  uintptr_t next_dry_address_ = uintptr_t{1} << 48;  // above what a process can map
};

}  // namespace rz
