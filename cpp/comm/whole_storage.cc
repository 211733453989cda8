#include "comm/whole_storage.h"

#include <algorithm>
#include <bit>

namespace rz::comm {

class WholeStorage final : public Storage {
 public:
  WholeStorage(std::shared_ptr<WholePool> pool, WholeSegment segment, size_t bytes, size_t counted, Stream* home, MemoryKind kind)
      : Storage(segment.mapping->data(), bytes, Device::Cpu, home), pool_(std::move(pool)), segment_(std::move(segment)), counted_(counted), kind_(kind) {
    pool_->runtime_->allocator().account(kind_, static_cast<int64_t>(counted_));
  }
  ~WholeStorage() override {
    retire();
    std::vector<Event> pending{home_->record()};
    for (uint32_t mask = foreign_; mask; mask &= mask - 1) pending.push_back(pool_->runtime_->stream(std::countr_zero(mask))->record());
    pool_->retire({std::move(segment_), std::move(pending)});
  }
  int backing() const override { return segment_.fd.get(); }
  int64_t whole() const override { return segment_.key; }

 protected:
  void give_back() override { pool_->runtime_->allocator().account(kind_, -static_cast<int64_t>(counted_)); }

 private:
  std::shared_ptr<WholePool> pool_;
  WholeSegment segment_;
  size_t counted_;
  MemoryKind kind_;
};

WholePool::~WholePool() {
  for (Retired& each : retired_) destroy(each.segment);
}

std::shared_ptr<Storage> WholePool::adopt(WholeSegment segment, size_t bytes, size_t counted, Stream* home, MemoryKind kind) {
  trim();
  return std::make_shared<WholeStorage>(shared_from_this(), std::move(segment), bytes, counted, home, kind);
}

void WholePool::destroy(WholeSegment& segment) {
  segment.mapping.reset();
  if (segment.own) exchange_->destroy(segment.own);
}

void WholePool::retire(Retired retired) {
  std::lock_guard lock(mutex_);
  retired_.push_back(std::move(retired));
}

void WholePool::trim() {
  std::list<Retired> idle;
  {
    std::lock_guard lock(mutex_);
    for (auto it = retired_.begin(); it != retired_.end();) {
      auto next = std::next(it);
      bool done = std::all_of(it->pending.begin(), it->pending.end(), [](const Event& e) { return e.stream->query(e); });
      if (done) idle.splice(idle.end(), retired_, it);
      it = next;
    }
  }
  for (Retired& each : idle) destroy(each.segment);
}

}  // namespace rz::comm
