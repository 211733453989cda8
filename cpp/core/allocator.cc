#include "core/allocator.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>

#include "core/error.h"

namespace rz {

constexpr size_t kHuge = size_t{2} << 20;

// Large blocks are mapped on a huge-page boundary; small ones come from malloc.
void* CpuAllocator::system_allocate(size_t bytes) {
  if (dry_) return dry_address(bytes);
  void* data = std::aligned_alloc(bytes >= kHuge ? kHuge : 64, bytes);
  if (data && bytes >= kHuge) madvise(data, bytes, MADV_HUGEPAGE);
  return data;
}

void* CpuAllocator::dry_address(size_t bytes) {
  std::lock_guard lock(mutex_);
  void* address = reinterpret_cast<void*>(next_dry_address_);
  next_dry_address_ += (bytes + 63) & ~size_t{63};
  return address;
}

class CpuStorage final : public Storage {
 public:
  CpuStorage(std::shared_ptr<CpuAllocator> owner, void* data, size_t bytes, size_t reserved, Stream* home, MemoryKind kind)
      : Storage(data, bytes, Device::Cpu, home), owner_(std::move(owner)), reserved_(reserved), kind_(kind) {}
  ~CpuStorage() override { retire(); }

 protected:
  void give_back() override {
    CpuAllocator::Block block{data_, reserved_, {}, home_};
    for (uint32_t mask = foreign_; mask; mask &= mask - 1) {
      block.pending.push_back((*owner_->streams_)[std::countr_zero(mask)]->record());
    }
    block.pending.push_back(home_->record());
    owner_->release(std::move(block), kind_);
  }

 private:
  std::shared_ptr<CpuAllocator> owner_;
  size_t reserved_;
  MemoryKind kind_;
};

CpuAllocator::~CpuAllocator() { trim(); }

// Eight classes to each power of two: at most 12.5 % of a block is unused.
size_t CpuAllocator::size_class(size_t bytes) {
  if (bytes <= 512) return (bytes + 63) & ~size_t{63};
  size_t step = std::max<size_t>(64, std::bit_floor(bytes - 1) / 8);
  size_t rounded = (bytes + step - 1) / step * step;
  return rounded >= kHuge ? (rounded + kHuge - 1) / kHuge * kHuge : rounded;
}

// A cached block for `want`: of its size class, else the smallest of the same stream that is not twice as large. Sizes
// that vary from step to step, as those of real batches do, would otherwise pile up a cache for each.
bool CpuAllocator::take(size_t want, Stream* home, Block& block) {
  for (auto it = free_.lower_bound(want); it != free_.end() && it->first < 2 * want; ++it) {
    std::vector<Block>& list = it->second;
    auto found = std::find_if(list.rbegin(), list.rend(), [&](const Block& b) { return b.home == home; });
    if (found == list.rend() && it->first == want) found = list.rbegin();
    if (found == list.rend()) continue;
    block = std::move(*found);
    list.erase(std::next(found).base());
    if (list.empty()) free_.erase(it);
    return true;
  }
  return false;
}

std::shared_ptr<Storage> CpuAllocator::allocate(size_t bytes, Stream* home, MemoryKind kind) {
  size_t want = size_class(std::max<size_t>(bytes, 1));
  Block block{nullptr, want, {}, home};
  {
    std::lock_guard lock(mutex_);
    if (take(want, home, block)) want = block.bytes;
    stats_.current[static_cast<int>(kind)] += static_cast<int64_t>(want);
    stats_.peak[static_cast<int>(kind)] = std::max(stats_.peak[static_cast<int>(kind)], stats_.current[static_cast<int>(kind)]);
    stats_.total += static_cast<int64_t>(want);
    stats_.total_peak = std::max(stats_.total_peak, stats_.total);
  }
  for (const Event& event : block.pending) {
    home->wait_for_reuse(event);
  }
  if (!block.data) {
    block.data = system_allocate(want);
    if (!block.data) {
      account(kind, -static_cast<int64_t>(want));
      MemoryStats now = stats();
      fail("ERR_OUT_OF_MEMORY", "out of host memory: ", bytes, " bytes were asked for, ", now.total, " are in use and ",
           now.reserved, " reserved");
    }
    std::lock_guard lock(mutex_);
    stats_.reserved += static_cast<int64_t>(want);
  }
  return std::make_shared<CpuStorage>(shared_from_this(), block.data, bytes, want, home, kind);
}

void CpuAllocator::release(Block block, MemoryKind kind) {
  std::lock_guard lock(mutex_);
  stats_.current[static_cast<int>(kind)] -= static_cast<int64_t>(block.bytes);
  stats_.total -= static_cast<int64_t>(block.bytes);
  free_[block.bytes].push_back(std::move(block));
}

void CpuAllocator::account(MemoryKind kind, int64_t delta) {
  std::lock_guard lock(mutex_);
  auto& current = stats_.current[static_cast<int>(kind)];
  current += delta;
  stats_.peak[static_cast<int>(kind)] = std::max(stats_.peak[static_cast<int>(kind)], current);
  stats_.total += delta;
  stats_.total_peak = std::max(stats_.total_peak, stats_.total);
}

MemoryStats CpuAllocator::stats() const {
  std::lock_guard lock(mutex_);
  return stats_;
}

void CpuAllocator::reset_peak() {
  std::lock_guard lock(mutex_);
  stats_.peak = stats_.current;
  stats_.total_peak = stats_.total;
}

void CpuAllocator::trim() {
  std::lock_guard lock(mutex_);
  for (auto& [bytes, blocks] : free_) {
    for (Block& block : blocks) {
      if (!dry_) std::free(block.data);
      stats_.reserved -= static_cast<int64_t>(bytes);
    }
  }
  free_.clear();
}

}  // namespace rz
