#include "comm/shared_storage.h"

#include <algorithm>
#include <bit>

namespace rz::comm {
namespace {

// What may stay cached of blocks that were used once, as a finished phase leaves behind.
constexpr size_t kCacheFloor = size_t{256} << 20;
// What was reused before stays, for training takes it every step; unless so many others were asked for since.
constexpr uint64_t kStale = 1024;

}  // namespace

size_t SharedPool::rounded(size_t bytes) {
  size_t unit = bytes >= (size_t{1} << 20) ? 65536 : 4096;
  return (std::max<size_t>(bytes, 1) + unit - 1) / unit * unit;
}

class SharedStorage final : public Storage {
 public:
  SharedStorage(std::shared_ptr<SharedPool> pool, SegmentTable::Owned segment, size_t bytes, Stream* home, MemoryKind kind, bool reused)
      : Storage(segment.data, bytes, Device::Cpu, home), pool_(std::move(pool)), segment_(segment), kind_(kind), reused_(reused) {}
  ~SharedStorage() override { retire(); }
  int segment() const override { return segment_.id; }

 protected:
  void give_back() override {
    SharedPool::Block block{segment_, {home_->record()}, home_, 0, reused_};
    for (uint32_t mask = foreign_; mask; mask &= mask - 1) {
      block.pending.push_back(pool_->runtime_->stream(std::countr_zero(mask))->record());
    }
    pool_->release(std::move(block), kind_);
  }

 private:
  std::shared_ptr<SharedPool> pool_;
  SegmentTable::Owned segment_;
  MemoryKind kind_;
  bool reused_;
};

SharedPool::~SharedPool() {
  for (Block& block : cached_) exchange_->destroy(block.segment.id);
}

bool SharedPool::idle(const Block& block, const Stream* home) {
  return std::all_of(block.pending.begin(), block.pending.end(), [&](const Event& e) { return e.stream == home || e.stream->query(e); });
}

// A block that nobody waits for; else one that was released a while ago, or the oldest of two. With one alone in use, a second
// one lets the next task on `home` overlap with the collective that still reads the first.
std::deque<SharedPool::Block>::iterator SharedPool::pick(size_t bytes, const Stream* home) {
  auto oldest = cached_.end();
  int busy = 0;
  for (auto it = cached_.begin(); it != cached_.end(); ++it) {
    if (it->segment.bytes != bytes) continue;
    if (idle(*it, home)) return it;
    if (busy++ == 0) oldest = it;
  }
  return busy >= 2 || (busy == 1 && asked_ - oldest->released > 2) ? oldest : cached_.end();
}

std::shared_ptr<Storage> SharedPool::allocate(size_t bytes, Stream* home, MemoryKind kind, bool populate_now) {
  size_t want = rounded(bytes);
  Block block{{}, {}, home};
  bool reused = false;
  {
    std::unique_lock lock(mutex_);
    ++asked_;
    auto found = pick(want, home);
    if (found != cached_.end()) {
      block = std::move(*found);
      cached_.erase(found);
      cached_bytes_ -= want;
      reused = true;
    }
    used_bytes_ += want;
  }
  if (!reused) block.segment = exchange_->own().create(want);
  for (const Event& event : block.pending) {
    home->wait_for_reuse(event);
  }
  runtime_->allocator().account(kind, static_cast<int64_t>(want));
  if (!reused && populate_now) {
    std::byte* data = block.segment.data;
    static_cast<CpuStream*>(home)->enqueue("populate", [data, bytes, self = shared_from_this()] { populate(data, bytes); });
  }
  return std::make_shared<SharedStorage>(shared_from_this(), block.segment, bytes, home, kind, reused);
}

void SharedPool::release(Block block, MemoryKind kind) {
  runtime_->allocator().account(kind, -static_cast<int64_t>(block.segment.bytes));
  std::unique_lock lock(mutex_);
  used_bytes_ -= block.segment.bytes;
  cached_bytes_ += block.segment.bytes;
  block.released = asked_;
  cached_.push_back(std::move(block));
  trim_to(std::max(kCacheFloor, used_bytes_ / 2), lock);
}

void SharedPool::trim_to(size_t limit, std::unique_lock<std::mutex>& lock) {
  std::vector<int> dead;
  for (auto it = cached_.begin(); it != cached_.end() && cached_bytes_ > limit;) {
    bool wanted = limit > 0 && it->reused && asked_ - it->released < kStale;
    if (wanted || !idle(*it, nullptr)) {
      ++it;
      continue;
    }
    cached_bytes_ -= it->segment.bytes;
    dead.push_back(it->segment.id);
    it = cached_.erase(it);
  }
  lock.unlock();
  for (int id : dead) exchange_->destroy(id);
}

void SharedPool::trim() {
  std::unique_lock lock(mutex_);
  trim_to(0, lock);
}

size_t SharedPool::cached_bytes() const {
  std::lock_guard lock(mutex_);
  return cached_bytes_;
}

}  // namespace rz::comm
