#include "comm/job_state.h"

#include <cstdio>

namespace rz::comm {
namespace {

// For the abort that stands: the store answers at once, unless its host is slow. One that is gone is an abort too.
constexpr auto kAnswer = std::chrono::seconds(30);

std::string size_text(uint64_t bytes) {
  const char* units[] = {"B", "kB", "MB", "GB", "TB"};
  double value = static_cast<double>(bytes);
  int unit = 0;
  while (value >= 1000 && unit < 4) value /= 1000, ++unit;
  char text[32];
  std::snprintf(text, sizeof text, unit == 0 ? "%.0f %s" : "%.1f %s", value, units[unit]);
  return text;
}

}  // namespace

std::string seconds_text(double seconds) {
  char text[32];
  std::snprintf(text, sizeof text, "%g s", seconds);
  return text;
}

std::string RankStatus::activity() const {
  std::string text;
  if (!operation.empty()) {
    text = "in " + operation + " #" + std::to_string(sequence);
  } else if (sequence > 0) {
    text = "between collectives (the last was #" + std::to_string(sequence) + ")";
  } else {
    text = "before its first collective";
  }
  if (!phase.empty()) text += ", phase " + phase;
  if (bytes > 0) text += ", " + size_text(bytes) + " moved";
  return text;
}

std::string RankStatus::text(int rank) const {
  std::string text = "rank " + std::to_string(rank);
  if (pid == 0) return text + " (not joined yet)";
  return text + " (pid " + std::to_string(pid) + (host.empty() ? "" : " on " + host) + ")";
}

std::string Doing::text() const {
  std::string text = operation;
  if (sequence > 0) text += " #" + std::to_string(sequence);
  if (*group) text += std::string(" of group ") + group;
  return text;
}

void JobState::abort(const std::string& code, const std::string& text) {
  {
    std::lock_guard lock(mutex_);
    if (aborted()) return;
    code_ = code;
    text_ = text;
    aborted_.store(true, std::memory_order_release);
  }
  changed_.notify_all();
}

void JobState::raise(const std::string& code, const std::string& text) {
  std::function<void(const std::string&, const std::string&)> announce;
  {
    std::lock_guard lock(mutex_);
    if (!aborted()) announce = announce_;
  }
  if (announce) {
    announce(code, text);
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, kAnswer, [&] { return aborted(); });
  }
  abort(code, text);
  std::lock_guard lock(mutex_);
  throw Error(code_, text_);
}

void JobState::announce(const std::string& code, const std::string& text) noexcept {
  try {
    std::function<void(const std::string&, const std::string&)> announce;
    {
      std::lock_guard lock(mutex_);
      if (!aborted()) announce = announce_;
    }
    if (announce) announce(code, text);
  } catch (const std::exception&) {
    // The store is gone, and the others see that by themselves.
  }
}

void JobState::throw_abort(const Doing& doing) const {
  std::lock_guard lock(mutex_);
  // A mismatch names both sides already, in the same words on every rank.
  if (code_ == "ERR_COLLECTIVE_MISMATCH") throw Error(code_, text_);
  throw Error(code_, text_ + "; this rank (" + std::to_string(rank_) + ") was in " + doing.text());
}

void JobState::depart(int rank) {
  departed_[static_cast<size_t>(rank)].store(true, std::memory_order_release);
  changed_.notify_all();
}

void JobState::update(std::vector<RankStatus> ranks, int64_t idle_milliseconds) {
  std::lock_guard lock(mutex_);
  for (size_t r = 0; r < ranks.size(); ++r) ranks[r].host = ranks_[r].host;
  ranks_ = std::move(ranks);
  last_progress_ = std::max(last_progress_, Clock::now() - std::chrono::milliseconds(idle_milliseconds));
}

RankStatus JobState::status(int rank) const {
  std::lock_guard lock(mutex_);
  return ranks_[static_cast<size_t>(rank)];
}

void JobState::introduce(int rank, uint32_t pid, const std::string& host) {
  std::lock_guard lock(mutex_);
  ranks_[static_cast<size_t>(rank)].pid = pid;
  ranks_[static_cast<size_t>(rank)].host = host;
}

void JobState::check(const Doing& doing, int peer, Clock::time_point since) {
  if (aborted()) throw_abort(doing);
  auto limit = std::chrono::duration<double>(timeout_);
  auto now = Clock::now();
  if (now - since < limit) return;
  {
    std::lock_guard lock(mutex_);
    if (now - last_progress_ < limit) return;
  }
  std::string text = "no rank made progress for " + std::to_string(static_cast<int64_t>(timeout_)) + " s (RANKZERO_TIMEOUT): rank " +
                     std::to_string(rank_) + " waits in " + doing.text();
  if (peer >= 0) {
    RankStatus other = status(peer);
    text += " for " + other.text(peer) + ", which is " + other.activity();
  }
  raise("ERR_TIMEOUT", text);
}

void JobState::peer_left(const Doing& doing, int peer) {
  raise("ERR_PEER", status(peer).text(peer) + " left the job while rank " + std::to_string(rank_) + " waits for it in " + doing.text());
}

void JobState::set_announcer(std::function<void(const std::string&, const std::string&)> announce) {
  std::lock_guard lock(mutex_);
  announce_ = std::move(announce);
}

}  // namespace rz::comm
