// A CPU stream is one worker thread with an ordered queue. After a task throws, later tasks are skipped and every
// wait throws that error, also on streams that waited for this one: nobody computes on garbage, nobody hangs.
#pragma once
#include <atomic>
#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <set>
#include <thread>

#include "core/profiler.h"
#include "core/stream.h"

namespace rz {

class CpuStream final : public Stream {
 public:
  CpuStream(int index, std::string name, Profiler* profiler);
  ~CpuStream() override;  // runs what is queued, then joins

  Device device() const override { return Device::Cpu; }
  // `op` must outlive the stream (a literal): it names the failing operation.
  void enqueue(const char* op, std::function<void()> run);
  Event record() override;
  void wait(const Event& event) override;
  void wait_for_reuse(const Event& event) override;
  bool query(const Event& event) const override;
  using Stream::synchronize;
  void synchronize(const Event& event) override;
  // From now on work is dropped where it would be queued, and every event is complete.
  void make_dry() { dry_ = true; }

  void drain(const Event& event) override { await(event); }

 private:
  struct Task {
    const char* op;
    std::function<void()> run;
    std::shared_ptr<TaskRecord> record;  // null unless it is profiled
  };
  void push(const char* op, std::function<void()> run, int awaits);
  void work();
  bool reached(const Event& event) const { return completed_.load(std::memory_order_acquire) >= event.position; }
  // Blocks until the event is reached, whether or not the work before it failed; returns the failure.
  std::exception_ptr await(const Event& event);

  mutable std::mutex mutex_;
  std::condition_variable queued_, finished_;
  std::deque<Task> tasks_;
  uint64_t enqueued_ = 0;
  std::atomic<uint64_t> completed_{0};
  std::exception_ptr failure_;
  bool closing_ = false, idle_ = false, dry_ = false;
  std::multiset<uint64_t> awaited_;  // positions, one for each thread that waits: only what it waits for wakes it
  Profiler* profiler_;
  std::thread worker_;
};

}  // namespace rz
