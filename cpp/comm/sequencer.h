// Tickets: calls of one group may come from several streams, but run in the order in which they were enqueued.
#pragma once
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <string>

#include "comm/job_state.h"

namespace rz::comm {

class Sequencer {
 public:
  // On the thread that enqueues. Tickets start at 1.
  uint64_t take() { return ++taken_; }

  // Blocks until every earlier ticket is done.
  void wait(JobState& state, const Doing& doing, uint64_t ticket) {
    auto ready = [&] {
      std::lock_guard lock(mutex_);
      return done_ + 1 == ticket || !broken_.empty();
    };
    wait_for(state, doing, -1, ready, [&] {
      std::unique_lock lock(mutex_);
      changed_.wait_for(lock, std::chrono::milliseconds(50), [&] { return done_ + 1 == ticket || !broken_.empty(); });
    });
    std::lock_guard lock(mutex_);
    if (!broken_.empty()) fail("ERR_GROUP", "[", doing.operation, "] an earlier call on this group did not complete: ", broken_);
  }

  void finish(uint64_t ticket) {
    {
      std::lock_guard lock(mutex_);
      done_ = ticket;
    }
    changed_.notify_all();
  }

  void break_with(const std::string& why) {
    {
      std::lock_guard lock(mutex_);
      if (broken_.empty()) broken_ = why;
    }
    changed_.notify_all();
  }

 private:
  uint64_t taken_ = 0;
  std::mutex mutex_;
  std::condition_variable changed_;
  uint64_t done_ = 0;
  std::string broken_;
};

}  // namespace rz::comm
