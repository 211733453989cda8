// Caching allocator of one device's memory, ordered by stream. A freed block is reusable at once on its own stream; another
// stream that takes it first waits (on the stream, not on the host) for the events recorded when it was freed. Blocks are
// cut from ranges of address space; what a range is and costs, each device says for itself. Where that can map pages at will, a
// block for which there is no room in one place is made of pages that are free elsewhere, and nobody waits for that.
#pragma once
#include <array>
#include <mutex>
#include <string>
#include <vector>

#include "core/arena.h"
#include "core/storage.h"

namespace rz {

struct MemoryStats {
  std::array<int64_t, kMemoryKinds> current{}, peak{};  // bytes in use, by kind
  int64_t total = 0, total_peak = 0;                     // sum over kinds
  int64_t reserved = 0, reserved_peak = 0;               // held from the system: in use, or cached
};

class CachingAllocator : public std::enable_shared_from_this<CachingAllocator> {
 public:
  struct Sizes {
    size_t unit;         // blocks are multiples of this
    size_t gap;          // and have at least so much room behind what was asked for
    size_t range_unit;   // and ranges of this
    size_t small_range;  // of a new range for small blocks, at least
    size_t large_range;
  };
  // `streams` is the runtime's table, indexed by Stream::index().
  CachingAllocator(Device device, const std::vector<std::unique_ptr<Stream>>* streams, const Sizes& sizes)
      : device_(device), streams_(streams), sizes_(sizes), small_{{}, sizes.small_range}, large_{{}, sizes.large_range}, gathered_{{}, 0} {}
  virtual ~CachingAllocator() = default;  // of a derived class: trims

  // Aligned to a cache line at least, uninitialised. Errors: ERR_OUT_OF_MEMORY with the sizes asked, in use and reserved.
  std::shared_ptr<Storage> allocate(size_t bytes, Stream* home, MemoryKind kind);
  // Counts memory that was allocated elsewhere (shared segments) under `kind`.
  void account(MemoryKind kind, int64_t delta);
  MemoryStats stats() const;
  void reset_peak();
  // Returns cached blocks to the system. The caller has synchronised all streams.
  void trim();

 protected:
  // A range of at least small_range or large_range, or of just what is wanted. Null where the system refuses.
  virtual std::byte* map_range(size_t bytes) = 0;
  virtual void unmap_range(std::byte* data, size_t bytes) = 0;
  // Gives the pages of a free part of a range back, where the system can.
  virtual void drop_pages(std::byte*, size_t) {}
  virtual size_t reserved() const { return small_.arena.backed() + large_.arena.backed() + gathered_.arena.backed(); }
  // After a refusal: true when something was done about it, so that another try is worth it.
  virtual bool make_room() { return false; }
  // Called before map_range, without the mutex.
  virtual void before_growth() {}

  // Where ranges are made of pages that can be mapped at any address: their size; else 0.
  virtual size_t page_bytes() const { return 0; }
  // Takes pages from the system until so many bytes of them are mapped nowhere, as far as it gives them. Returns how many are.
  virtual size_t spare_pages(size_t) { return 0; }
  virtual void release_spare() {}
  // A range of spare pages and of `moved`, which is free memory that was in other ranges: work that was enqueued before still
  // finds it at its old addresses.
  virtual std::byte* map_pages(size_t, const std::vector<Arena::Block>&) { return nullptr; }
  // A block of `taken` bytes is about to be used by `home`, `bytes` of it.
  virtual void prepare(const Arena::Block&, size_t, Stream*) {}
  [[noreturn]] virtual void out_of_memory(size_t bytes, MemoryKind kind) const = 0;
  // "12 parameter, 34 gradient": what is in use, for that.
  std::string in_use_by_kind() const;

  size_t rounded_to_range(size_t bytes) const;

 private:
  friend class PooledStorage;
  // Small blocks apart from large ones, which they would keep from coalescing. Gathered parameters have ranges of their own: in
  // memory that a gradient had, a gather would wait for that gradient's reduction.
  struct Pool {
    Arena arena;
    size_t range_bytes;  // of a new range, at least
  };
  Pool& pool_for(size_t bytes, MemoryKind kind) {
    if (kind == MemoryKind::Unshard) return gathered_;
    return bytes < kLarge ? small_ : large_;
  }
  bool take(size_t bytes, MemoryKind kind, Arena::Block& block);
  bool grow(Pool& pool, size_t bytes);
  bool regroup(Pool& pool, size_t bytes);
  void release(Arena::Block block, MemoryKind kind);

  static constexpr size_t kLarge = size_t{256} << 10;
  Device device_;
  const std::vector<std::unique_ptr<Stream>>* streams_;
  Sizes sizes_;
  mutable std::mutex mutex_;
  Pool small_, large_, gathered_;
  MemoryStats stats_;
};

}  // namespace rz
