#include "core/allocator.h"

#include <sys/mman.h>

#include <algorithm>
#include <bit>

#include "core/error.h"

namespace rz {

constexpr size_t kUnit = 512;             // sizes are multiples of this
constexpr size_t kHuge = size_t{2} << 20;

static size_t rounded(size_t bytes, size_t unit) { return (std::max<size_t>(bytes, 1) + unit - 1) / unit * unit; }

// On a huge-page boundary. Null where the system refuses.
std::byte* CpuAllocator::map_range(size_t bytes) {
  if (dry_) return static_cast<std::byte*>(dry_address(bytes));
  void* room = mmap(nullptr, bytes + kHuge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (room == MAP_FAILED) return nullptr;
  auto* begin = static_cast<std::byte*>(room);
  size_t before = rounded(reinterpret_cast<uintptr_t>(begin), kHuge) - reinterpret_cast<uintptr_t>(begin);
  if (before > 0) munmap(begin, before);
  if (before < kHuge) munmap(begin + before + bytes, kHuge - before);
  madvise(begin + before, bytes, MADV_HUGEPAGE);
  return begin + before;
}

bool CpuAllocator::grow(Pool& pool, size_t bytes) {
  for (size_t range : {rounded(std::max(bytes, pool.range_bytes), kHuge), rounded(bytes, kHuge)}) {
    if (std::byte* base = map_range(range)) {
      pool.arena.add(base, range);
      return true;
    }
  }
  return false;
}

void* CpuAllocator::dry_address(size_t bytes) {
  return reinterpret_cast<void*>(next_dry_address_.fetch_add((bytes + 63) & ~size_t{63}));
}

class CpuStorage final : public Storage {
 public:
  CpuStorage(std::shared_ptr<CpuAllocator> owner, std::byte* data, size_t bytes, size_t taken, Stream* home, MemoryKind kind)
      : Storage(data, bytes, Device::Cpu, home), owner_(std::move(owner)), taken_(taken), kind_(kind) {}
  ~CpuStorage() override { retire(); }

 protected:
  void give_back() override {
    Arena::Block block{static_cast<std::byte*>(data_), taken_, {}};
    for (uint32_t mask = foreign_; mask; mask &= mask - 1) {
      block.pending.push_back((*owner_->streams_)[std::countr_zero(mask)]->record());
    }
    block.pending.push_back(home_->record());
    owner_->release(std::move(block), kind_);
  }

 private:
  std::shared_ptr<CpuAllocator> owner_;
  size_t taken_;
  MemoryKind kind_;
};

CpuAllocator::~CpuAllocator() { trim(); }

std::shared_ptr<Storage> CpuAllocator::allocate(size_t bytes, Stream* home, MemoryKind kind) {
  size_t want = rounded(bytes, kUnit);
  Arena::Block block;
  bool taken;
  {
    std::lock_guard lock(mutex_);
    Pool& pool = pool_for(want);
    taken = pool.arena.take(want, block) || (grow(pool, want) && pool.arena.take(want, block));
  }
  if (!taken) {
    MemoryStats now = stats();
    fail("ERR_OUT_OF_MEMORY", "out of host memory: ", bytes, " bytes were asked for, ", now.total, " are in use and ",
         now.reserved, " reserved");
  }
  account(kind, static_cast<int64_t>(want));
  for (const Event& event : block.pending) {
    home->wait_for_reuse(event);
  }
  return std::make_shared<CpuStorage>(shared_from_this(), block.data, bytes, want, home, kind);
}

void CpuAllocator::release(Arena::Block block, MemoryKind kind) {
  account(kind, -static_cast<int64_t>(block.bytes));
  std::lock_guard lock(mutex_);
  pool_for(block.bytes).arena.release(std::move(block));
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
  MemoryStats stats = stats_;
  stats.reserved = static_cast<int64_t>(small_.arena.backed() + large_.arena.backed());
  return stats;
}

void CpuAllocator::reset_peak() {
  std::lock_guard lock(mutex_);
  stats_.peak = stats_.current;
  stats_.total_peak = stats_.total;
}

void CpuAllocator::trim() {
  std::lock_guard lock(mutex_);
  auto drop = [&](std::byte* data, size_t bytes) {
    auto begin = rounded(reinterpret_cast<uintptr_t>(data), 4096), end = (reinterpret_cast<uintptr_t>(data) + bytes) / 4096 * 4096;
    if (!dry_ && begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
  };
  auto remove = [&](std::byte* data, size_t bytes) {
    if (!dry_) munmap(data, bytes);
  };
  for (Pool* pool : {&small_, &large_}) pool->arena.trim(drop, remove);
}

}  // namespace rz
