#include "cpu/threads.h"

#include <omp.h>
#include <sched.h>

#include <algorithm>
#include <atomic>

#include "core/settings.h"
#include "cpu/parallel.h"

namespace rz::cpu {

// The cores this process may use, shared evenly with the other ranks of the host.
static int default_threads() {
  cpu_set_t set;
  int cores = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
  return std::max(1, cores / settings().local_world_size);
}

static std::atomic<int>& threads() {
  static std::atomic<int> count{default_threads()};
  return count;
}

int num_threads() { return threads().load(std::memory_order_relaxed); }

void set_num_threads(int count) { threads().store(std::max(1, count), std::memory_order_relaxed); }

void apply_num_threads() {
  static thread_local int applied = 0;
  int wanted = num_threads();
  if (applied != wanted) omp_set_num_threads(applied = wanted);
}

}  // namespace rz::cpu
