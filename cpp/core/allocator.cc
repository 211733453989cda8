#include "core/allocator.h"

#include <algorithm>
#include <bit>

namespace rz {

static size_t rounded(size_t bytes, size_t unit) { return (std::max<size_t>(bytes, 1) + unit - 1) / unit * unit; }

size_t CachingAllocator::rounded_to_range(size_t bytes) const { return rounded(bytes, sizes_.range_unit); }

bool CachingAllocator::grow(Pool& pool, size_t bytes) {
  for (size_t range : {rounded_to_range(std::max(bytes, pool.range_bytes)), rounded_to_range(bytes)}) {
    if (std::byte* base = map_range(range)) {
      pool.arena.add(base, range);
      return true;
    }
  }
  return false;
}

bool CachingAllocator::take(size_t bytes, MemoryKind kind, Arena::Block& block) {
  Pool& pool = pool_for(bytes, kind);
  {
    std::lock_guard lock(mutex_);
    if (pool.arena.take(bytes, block)) return true;
  }
  before_growth();
  std::lock_guard lock(mutex_);
  return pool.arena.take(bytes, block) || ((grow(pool, bytes) || regroup(pool, bytes)) && pool.arena.take(bytes, block));
}

// When the system gives no more: with what it gave last, from the pages of free blocks, wherever they are.
bool CachingAllocator::regroup(Pool& pool, size_t bytes) {
  const size_t page = page_bytes();
  if (page == 0) return false;
  const size_t range = rounded(bytes, std::max(page, sizes_.range_unit));
  std::array<Pool*, 3> pools{&pool, &pool, &pool};
  int others = 0;
  for (Pool* other : {&small_, &large_, &gathered_})
    if (other != &pool) pools[static_cast<size_t>(++others)] = other;
  size_t got = spare_pages(range), free = got;
  for (Pool* from : pools) free += from->arena.free_pages(page);
  if (free < range) return false;
  std::vector<Arena::Block> moved;
  std::vector<Event> pending;
  for (Pool* from : pools)
    if (got < range) got += from->arena.cut(page, range - got, moved);
  for (const Arena::Block& block : moved) merge_events(pending, block.pending);
  pool.arena.add(map_pages(range, moved), range, std::move(pending));
  return true;
}

class PooledStorage final : public Storage {
 public:
  PooledStorage(std::shared_ptr<CachingAllocator> owner, std::byte* data, size_t bytes, size_t taken, Stream* home, MemoryKind kind)
      : Storage(data, bytes, owner->device_, home), owner_(std::move(owner)), taken_(taken), kind_(kind) {}
  ~PooledStorage() override { retire(); }

 protected:
  void give_back() override {
    Arena::Block block{static_cast<std::byte*>(data_), taken_, {}};
    for (uint32_t mask = foreign_; mask; mask &= mask - 1) {
      block.pending.push_back((*owner_->streams_)[std::countr_zero(mask)]->mark());
    }
    block.pending.push_back(home_->mark());
    owner_->release(std::move(block), kind_);
  }

 private:
  std::shared_ptr<CachingAllocator> owner_;
  size_t taken_;
  MemoryKind kind_;
};

std::shared_ptr<Storage> CachingAllocator::allocate(size_t bytes, Stream* home, MemoryKind kind) {
  size_t want = rounded(bytes + sizes_.gap, sizes_.unit);
  Arena::Block block;
  if (!take(want, kind, block) && !(make_room() && take(want, kind, block))) out_of_memory(bytes, kind);
  account(kind, static_cast<int64_t>(want));
  for (const Event& event : block.pending) {
    home->wait_for_reuse(event);
  }
  prepare(block, bytes, home);
  return std::make_shared<PooledStorage>(shared_from_this(), block.data, bytes, want, home, kind);
}

void CachingAllocator::release(Arena::Block block, MemoryKind kind) {
  account(kind, -static_cast<int64_t>(block.bytes));
  std::lock_guard lock(mutex_);
  pool_for(block.bytes, kind).arena.release(std::move(block));
}

void CachingAllocator::account(MemoryKind kind, int64_t delta) {
  std::lock_guard lock(mutex_);
  auto& current = stats_.current[static_cast<int>(kind)];
  current += delta;
  stats_.peak[static_cast<int>(kind)] = std::max(stats_.peak[static_cast<int>(kind)], current);
  stats_.total += delta;
  stats_.total_peak = std::max(stats_.total_peak, stats_.total);
  stats_.reserved_peak = std::max(stats_.reserved_peak, static_cast<int64_t>(reserved()));
}

MemoryStats CachingAllocator::stats() const {
  std::lock_guard lock(mutex_);
  MemoryStats stats = stats_;
  stats.reserved = static_cast<int64_t>(reserved());
  return stats;
}

void CachingAllocator::reset_peak() {
  std::lock_guard lock(mutex_);
  stats_.peak = stats_.current;
  stats_.total_peak = stats_.total;
  stats_.reserved_peak = static_cast<int64_t>(reserved());
}

std::string CachingAllocator::in_use_by_kind() const {
  std::lock_guard lock(mutex_);
  std::string text;
  for (int i = 0; i < kMemoryKinds; ++i) {
    if (const int64_t bytes = stats_.current[static_cast<size_t>(i)]; bytes != 0)
      text += (text.empty() ? "" : ", ") + std::to_string(bytes) + " " + name_of(static_cast<MemoryKind>(i));
  }
  return text.empty() ? "nothing" : text;
}

void CachingAllocator::trim() {
  before_growth();
  std::lock_guard lock(mutex_);
  for (Pool* pool : {&small_, &large_, &gathered_}) {
    if (const size_t page = page_bytes()) {
      std::vector<Arena::Block> free;
      pool->arena.cut(page, SIZE_MAX, free);
      for (const Arena::Block& block : free) unmap_range(block.data, block.bytes);
    }
    pool->arena.trim([this](std::byte* data, size_t bytes) { drop_pages(data, bytes); },
                     [this](std::byte* data, size_t bytes) { unmap_range(data, bytes); });
  }
  release_spare();
}

}  // namespace rz
