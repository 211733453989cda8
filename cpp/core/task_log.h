// What a stream did while it was profiled: a record for each task, in a buffer of fixed size. A record is claimed where the
// task is enqueued. On the CPU the stream's worker alone writes its times, without a lock; those of a device are read from its
// events afterwards. Tasks keep their records alive, so that a profile can be dropped while they are still queued.
#pragma once
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <type_traits>

#include "core/dtype.h"

namespace rz {

// What an op has to do at least, and its sizes.
struct Work {
  double flops = 0, bytes = 0;  // arithmetic; memory read and written. 0: unknown
  const char* axes = "";        // names of the sizes, separated by spaces: a literal
  int64_t sizes[4] = {};
  DType dtype = DType::Float32;
};

struct TaskRecord {
  const char* op;  // a literal
  int64_t enqueued, start = 0, end = 0;  // nanoseconds of clock_now(); end 0: never ran
  int64_t waited = 0;                    // within the task, for other ranks
  int32_t span;                          // open where it was enqueued: its number, or -1
  int32_t awaits;                        // a wait for this stream: its index; -1: work
  Work work;
};

// CLOCK_MONOTONIC, which all processes of a host share, and which process.hrtime() reads.
inline int64_t clock_now() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

static_assert(std::is_trivially_destructible_v<TaskRecord>);

class TaskLog {
 public:
  // On the thread that enqueues.
  std::shared_ptr<TaskRecord> claim(const char* op, int32_t span, int32_t awaits, size_t capacity) {
    // Only pages that are written come to exist: a short profile does not pay for what would fit.
    if (!records_) records_ = {static_cast<TaskRecord*>(std::malloc(capacity * sizeof(TaskRecord))), std::free};
    if (size_ == capacity || !records_) return ++dropped_, nullptr;
    auto* record = new (records_.get() + size_++) TaskRecord{op, clock_now(), 0, 0, 0, span, awaits, {}};
    return {records_, record};
  }
  void clear() { *this = {}; }
  size_t size() const { return size_; }
  size_t dropped() const { return dropped_; }
  const TaskRecord& at(size_t i) const { return records_.get()[i]; }

 private:
  std::shared_ptr<TaskRecord> records_;
  size_t size_ = 0, dropped_ = 0;
};

namespace detail {
inline constinit thread_local TaskRecord* current_task = nullptr;
}

// The record of the task that this thread runs, or enqueues on a device; null unless it is profiled.
inline TaskRecord* current_task() { return detail::current_task; }

class TaskScope {
 public:
  explicit TaskScope(TaskRecord* record) { detail::current_task = record; }
  ~TaskScope() { detail::current_task = nullptr; }
  TaskScope(const TaskScope&) = delete;
};

inline void describe(const Work& work) {
  if (TaskRecord* record = current_task()) record->work = work;
}

// Counts the time of a scope as waiting for other ranks.
class PeerWait {
 public:
  PeerWait() : record_(current_task()), since_(record_ ? clock_now() : 0) {}
  ~PeerWait() {
    if (record_) record_->waited += clock_now() - since_;
  }
  PeerWait(const PeerWait&) = delete;

 private:
  TaskRecord* record_;
  int64_t since_;
};

}  // namespace rz
