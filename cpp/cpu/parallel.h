// Splitting work over the kernel threads. With one thread the work is a plain call, without an OpenMP region.
#pragma once
#include <algorithm>
#include <cstdint>

#include "cpu/threads.h"

namespace rz::cpu {

// oneDNN asks OpenMP for the number of threads of the calling thread: set it there before a GEMM.
void apply_num_threads();

// f(begin, end) over [0, n) in contiguous shares that are multiples of `grain`. Where a result depends on how a range is
// cut, the caller cuts it into fixed blocks and makes those the unit.
template <class F>
void parallel_for(int64_t n, int64_t grain, F&& f) {
  if (n <= 0) return;
  int64_t pieces = (n + grain - 1) / grain;
  int threads = static_cast<int>(std::min<int64_t>(num_threads(), pieces));
  if (threads == 1) return f(int64_t{0}, n);
#pragma omp parallel for num_threads(threads) schedule(static, 1)
  for (int t = 0; t < threads; ++t) {
    int64_t begin = pieces * t / threads * grain, end = std::min(n, pieces * (t + 1) / threads * grain);
    if (begin < end) f(begin, end);
  }
}

}  // namespace rz::cpu
