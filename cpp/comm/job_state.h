// What this process knows about its job: who left, who died, and whether the job is aborted. Every wait of the
// communication code looks here at least every 100 ms, so that no wait outlives the peer it waits for.
#pragma once
#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <string>
#include <vector>

#include "comm/socket.h"
#include "core/error.h"

namespace rz::comm {

struct RankStatus {
  uint32_t pid = 0;  // 0: has not joined
  std::string host;  // empty when all ranks are on one
  bool departed = false;
  std::string phase, operation;
  uint64_t sequence = 0, bytes = 0, ticks = 0;
  std::string text(int rank) const;  // "rank 1 (pid 42)", "rank 1 (pid 42 on node1)"
  std::string activity() const;      // "in all_gather #12", "before its first collective, phase load, 3.1 MB moved"
};

// The wait in progress, for error texts.
struct Doing {
  const char* operation;
  uint64_t sequence = 0;
  const char* group = "";
  std::string text() const;
};

// "60 s", "2.5 s"
std::string seconds_text(double seconds);

class JobState {
 public:
  JobState(int rank, int size, double timeout_seconds) : rank_(rank), timeout_(timeout_seconds), ranks_(static_cast<size_t>(size)) {}

  int rank() const { return rank_; }
  int size() const { return static_cast<int>(ranks_.size()); }
  double timeout() const { return timeout_; }

  bool aborted() const { return aborted_.load(std::memory_order_acquire); }
  // The first abort stands; later ones are ignored.
  void abort(const std::string& code, const std::string& text);
  // This rank cannot go on: all ranks hear it, and the abort that reached the store first is thrown here.
  [[noreturn]] void raise(const std::string& code, const std::string& text);
  // The same without the wait and the throw.
  void announce(const std::string& code, const std::string& text) noexcept;
  [[noreturn]] void throw_abort(const Doing& doing) const;

  void depart(int rank);
  bool departed(int rank) const { return rank >= 0 && departed_[static_cast<size_t>(rank)].load(std::memory_order_acquire); }
  void update(std::vector<RankStatus> ranks, int64_t idle_milliseconds);
  RankStatus status(int rank) const;
  void introduce(int rank, uint32_t pid, const std::string& host);

  // Throws if the job is aborted, or if neither this wait nor any rank made progress for the timeout.
  void check(const Doing& doing, int peer, Clock::time_point since);
  [[noreturn]] void peer_left(const Doing& doing, int peer);

  // Waits until `changed` holds or the job is aborted, at most `milliseconds`.
  void sleep(std::unique_lock<std::mutex>& lock, int milliseconds) { changed_.wait_for(lock, std::chrono::milliseconds(milliseconds)); }
  std::mutex& mutex() { return mutex_; }
  void notify() { changed_.notify_all(); }
  // How an abort reaches the store; set while it is connected.
  void set_announcer(std::function<void(const std::string&, const std::string&)> announce);

 private:
  int rank_;
  double timeout_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::atomic<bool> aborted_{false};
  std::string code_, text_;
  std::vector<RankStatus> ranks_;
  std::vector<std::atomic<bool>> departed_ = std::vector<std::atomic<bool>>(ranks_.size());
  Clock::time_point last_progress_ = Clock::now();
  std::function<void(const std::string&, const std::string&)> announce_;
};

// Waits for `ready`. `pause` sleeps at most 100 ms; `peer` is the rank that must act, or -1.
template <class Ready, class Pause>
void wait_for(JobState& state, const Doing& doing, int peer, Ready ready, Pause pause) {
  auto since = Clock::now();
  while (!ready()) {
    pause();
    if (ready()) return;
    bool left = state.departed(peer);
    if (left && ready()) return;  // it acted, then left
    state.check(doing, peer, since);
    if (left) state.peer_left(doing, peer);
  }
}

}  // namespace rz::comm
