// Streams: ordered queues of work. A caller enqueues and goes on; it waits only where a value is read.
// An event is a position in a stream; waiting for it on another stream orders the two without blocking the caller.
#pragma once
#include <cstdint>
#include <functional>
#include <string>

#include "core/task_log.h"

namespace rz {

enum class Device : uint8_t { Cpu = 0, Cuda = 1 };

constexpr const char* name_of(Device device) { return device == Device::Cpu ? "cpu" : "cuda"; }

class Stream;

struct Event {
  Stream* stream = nullptr;  // null: complete
  uint64_t position = 0;
};

class Stream {
 public:
  Stream(int index, std::string name) : index_(index), name_(std::move(name)) {}
  virtual ~Stream() = default;
  Stream(const Stream&) = delete;

  int index() const { return index_; }  // 0 … 31, unique in its runtime
  const std::string& name() const { return name_; }

  virtual Device device() const = 0;
  // An event that completes when everything enqueued so far has run.
  virtual Event record() = 0;
  // As record, for memory that is given back: free where recording costs something. It may complete later than need be, and
  // is no event for other threads before query() was called on it.
  virtual Event mark() { return record(); }
  // Work enqueued from now on runs after `event`.
  virtual void wait(const Event& event) = 0;
  // As wait, for memory that earlier work used: what failed there is not this stream's failure, since nothing is read of it.
  virtual void wait_for_reuse(const Event& event) = 0;
  virtual bool query(const Event& event) const = 0;
  // Blocks the caller. Throws the first error of the work up to the event (Error, naming the op).
  virtual void synchronize(const Event& event) = 0;
  // As synchronize, whether or not the work failed.
  virtual void drain(const Event& event) = 0;
  void synchronize() { synchronize(record()); }

  // What was profiled, on the thread that enqueues. Its times are complete when the stream was drained and complete_log() was
  // called.
  const TaskLog& log() const { return log_; }
  virtual void complete_log() {}
  virtual void clear_log() { log_.clear(); }

 protected:
  TaskLog log_;

 private:
  int index_;
  std::string name_;
};

}  // namespace rz
