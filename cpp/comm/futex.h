// Waiting on a word in shared memory: spin briefly, then sleep in the kernel for at most 50 ms at a time, so that the
// caller sees an abort even if the rank that should wake it is dead.
#pragma once
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <climits>
#include <cstdint>
#include <ctime>

namespace rz::comm {

inline void publish_word(std::atomic<uint32_t>& word, std::atomic<uint32_t>& sleepers, uint32_t value) {
  word.store(value, std::memory_order_seq_cst);
  if (sleepers.load(std::memory_order_seq_cst) > 0) syscall(SYS_futex, &word, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

// Sleeps while the word holds `seen`.
inline void sleep_on_word(std::atomic<uint32_t>& word, std::atomic<uint32_t>& sleepers, uint32_t seen) {
  sleepers.fetch_add(1, std::memory_order_seq_cst);
  timespec limit{0, 50'000'000};
  syscall(SYS_futex, &word, FUTEX_WAIT, seen, &limit, nullptr, 0);
  sleepers.fetch_sub(1, std::memory_order_relaxed);
}

// Rounds wrap around: `value` has been reached if it is not ahead.
inline bool reached(uint32_t word, uint32_t value) { return static_cast<int32_t>(word - value) >= 0; }

inline void spin_pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace rz::comm
