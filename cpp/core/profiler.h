// The profiler of a runtime. Between start and stop every task that is enqueued is recorded, whenever it runs: a profile
// of some training steps holds their work and no other. Spans say what the JavaScript thread did meanwhile, and a task knows
// the span that enqueued it. Everything here is called on the JavaScript thread, but for is_recording().
#pragma once
#include <array>
#include <atomic>
#include <string>
#include <unordered_map>
#include <vector>

#include "core/storage.h"
#include "core/task_log.h"

namespace rz {

class CachingAllocator;

struct Span {
  int32_t kind, label;  // indices of names(); label -1: none
  int64_t start, end;   // nanoseconds of clock_now(); end 0: still open
  std::array<int64_t, kMemoryKinds> before, after;  // bytes in use
};

class Profiler {
 public:
  explicit Profiler(const CachingAllocator* allocator) : allocator_(allocator) {}

  // The price of a profiler that is off: one relaxed load for each task.
  bool is_recording() const { return recording_.load(std::memory_order_relaxed); }
  // At most `capacity` tasks of each stream, and as many spans, are kept; the rest is counted. Errors: ERR_PROFILE.
  void start(size_t capacity);
  void stop();
  void clear();

  // Opens a span inside the innermost open one; returns its number, or -1 when it is dropped.
  int32_t begin(const std::string& kind, const std::string& label);
  void end(int32_t span);

  // `awaits`: the stream that the task waits for, or -1 for work.
  std::shared_ptr<TaskRecord> claim(TaskLog& log, const char* op, int32_t awaits) const {
    return log.claim(op, open_.empty() ? -1 : open_.back(), awaits, capacity_);
  }

  int64_t started() const { return started_; }
  const std::vector<std::string>& names() const { return names_; }
  const std::vector<Span>& spans() const { return spans_; }
  size_t dropped_spans() const { return dropped_; }

 private:
  int32_t intern(const std::string& name);
  std::array<int64_t, kMemoryKinds> memory() const;

  const CachingAllocator* allocator_;
  std::atomic<bool> recording_{false};
  size_t capacity_ = 0, dropped_ = 0;
  int64_t started_ = 0;
  std::vector<std::string> names_;
  std::unordered_map<std::string, int32_t> index_;
  std::vector<Span> spans_;
  std::vector<int32_t> open_;
};

}  // namespace rz
