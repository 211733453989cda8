// Best fit with splitting and coalescing over address ranges, which are never touched: the bookkeeping of an allocator on
// any device. What lies between two blocks in use is one free block, so memory of many small activations can hold one large
// gradient a moment later. Where a device maps pages at addresses of choice, whole pages of free blocks can be cut out.
#pragma once
#include <cstddef>
#include <map>
#include <set>
#include <utility>
#include <vector>

#include "core/stream.h"

namespace rz {

// Of each stream the latest event.
void merge_events(std::vector<Event>& events, const std::vector<Event>& others);

class Arena {
 public:
  struct Block {
    std::byte* data = nullptr;
    size_t bytes = 0;
    std::vector<Event> pending;  // reuse comes after these; at most one of each stream
  };

  // Adds a range, all of it free and without pages; it is used after `pending`.
  void add(std::byte* base, size_t bytes, std::vector<Event> pending = {});
  // The smallest free block that holds `bytes`, cut to that size; of equal ones the lowest.
  bool take(size_t bytes, Block& block);
  void release(Block block);

  // Whole pages in free blocks, in bytes.
  size_t free_pages(size_t page) const;
  // Takes so many bytes of them out of the arena, whose ranges end there from then on: those of the largest blocks first, as runs
  // in `out`. Returns how many there were.
  size_t cut(size_t page, size_t bytes, std::vector<Block>& out);

  // Bytes in use, and in free blocks that were used before: what the ranges cost their device.
  size_t backed() const { return used_ + backed_free_; }
  // Forgets that free blocks were used: `drop(data, bytes)` gives their pages back. Ranges without a block in use leave the
  // arena, by `remove(data, bytes)`.
  template <class Drop, class Remove>
  void trim(Drop drop, Remove remove) {
    for (auto range = ranges_.begin(); range != ranges_.end();) {
      auto free = free_.find(range->first);
      if (free == free_.end() || free->second.bytes != range->second) {
        ++range;
        continue;
      }
      erase(free);
      remove(range->first, range->second);
      range = ranges_.erase(range);
    }
    for (auto& [data, free] : free_) {
      if (free.backed > 0) drop(data, free.bytes);
      backed_free_ -= free.backed;
      free.backed = 0;
    }
  }

 private:
  struct Free {
    size_t bytes = 0;
    size_t backed;  // of them, those that may have pages
    std::vector<Event> pending;
  };
  using FreeMap = std::map<std::byte*, Free>;
  void insert(std::byte* data, Free free);
  Free erase(FreeMap::iterator at);
  std::byte* range_of(std::byte* data) const { return std::prev(ranges_.upper_bound(data))->first; }

  std::map<std::byte*, size_t> ranges_;
  FreeMap free_;
  std::set<std::pair<size_t, std::byte*>> by_size_;
  size_t used_ = 0, backed_free_ = 0;
};

}  // namespace rz
