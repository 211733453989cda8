// Storages that peers read directly. The rule that makes their reuse safe: a collective that lets peers read a storage
// completes on its owner's stream only after every peer has read. So a freed segment may be written again as soon as
// the streams that used it are past their tasks, exactly as with private memory, and its mappings at peers stay valid.
#pragma once
#include <deque>
#include <memory>
#include <mutex>

#include "comm/segment_exchange.h"
#include "core/runtime.h"

namespace rz::comm {

class SharedPool : public std::enable_shared_from_this<SharedPool> {
 public:
  SharedPool(Runtime* runtime, std::shared_ptr<SegmentExchange> exchange) : runtime_(runtime), exchange_(std::move(exchange)) {}
  ~SharedPool();

  // Page-aligned. `populate`: its pages are made by a task on `home`, in one go; without, by whoever writes first.
  std::shared_ptr<Storage> allocate(size_t bytes, Stream* home, MemoryKind kind, bool populate);
  // What a segment for so many bytes takes.
  static size_t rounded(size_t bytes);
  // Really frees cached segments that no stream uses.
  void trim();
  size_t cached_bytes() const;
  Runtime* runtime() const { return runtime_; }

 private:
  friend class SharedStorage;
  struct Block {
    SegmentTable::Owned segment;
    std::vector<Event> pending;
    Stream* home;
    uint64_t released = 0;  // how many blocks had been asked for by then
    bool reused = false;
  };
  void release(Block block, MemoryKind kind);
  // Whether work enqueued on `home` now may use the block without waiting.
  static bool idle(const Block& block, const Stream* home);
  std::deque<Block>::iterator pick(size_t bytes, const Stream* home);
  void trim_to(size_t limit, std::unique_lock<std::mutex>& lock);

  Runtime* runtime_;
  std::shared_ptr<SegmentExchange> exchange_;
  mutable std::mutex mutex_;
  std::deque<Block> cached_;  // oldest first
  size_t cached_bytes_ = 0, used_bytes_ = 0;
  uint64_t asked_ = 0;
};

}  // namespace rz::comm
