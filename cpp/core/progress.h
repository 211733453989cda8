// What this process is doing, for heartbeats and for the error texts of its peers. Any thread may write: a rank that
// is slow but moves bytes is never taken for a dead one.
#pragma once
#include <atomic>
#include <cstdint>
#include <mutex>
#include <string>
#include <string_view>

namespace rz::progress {

struct Snapshot {
  std::string phase;      // "load", "train" …; empty: none
  std::string operation;  // the collective in progress; empty: none
  uint64_t sequence = 0;  // of the last collective entered
  uint64_t bytes = 0;     // read, written or moved so far
  uint64_t ticks = 0;     // changes whenever anything above does
};

namespace detail {
inline std::mutex phase_mutex;
inline std::string phase;
inline std::atomic<const char*> operation{nullptr};
inline std::atomic<uint64_t> sequence{0}, bytes{0}, ticks{0};
}  // namespace detail

inline void set_phase(std::string_view name) {
  std::lock_guard lock(detail::phase_mutex);
  detail::phase.assign(name);
  detail::ticks.fetch_add(1, std::memory_order_relaxed);
}

inline void add_bytes(uint64_t count) noexcept {
  detail::bytes.fetch_add(count, std::memory_order_relaxed);
  detail::ticks.fetch_add(1, std::memory_order_relaxed);
}

// Something that takes long has come a piece further, and moved nothing.
inline void tick() noexcept { detail::ticks.fetch_add(1, std::memory_order_relaxed); }

// `operation` is a literal; null when the collective is over.
inline void enter(const char* operation, uint64_t sequence) noexcept {
  detail::operation.store(operation, std::memory_order_relaxed);
  detail::sequence.store(sequence, std::memory_order_relaxed);
  detail::ticks.fetch_add(1, std::memory_order_relaxed);
}

inline uint64_t ticks() noexcept { return detail::ticks.load(std::memory_order_relaxed); }

inline Snapshot snapshot() {
  Snapshot now;
  {
    std::lock_guard lock(detail::phase_mutex);
    now.phase = detail::phase;
  }
  const char* operation = detail::operation.load(std::memory_order_relaxed);
  now.operation = operation ? operation : "";
  now.sequence = detail::sequence.load(std::memory_order_relaxed);
  now.bytes = detail::bytes.load(std::memory_order_relaxed);
  now.ticks = detail::ticks.load(std::memory_order_relaxed);
  return now;
}

}  // namespace rz::progress
