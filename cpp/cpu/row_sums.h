// Sums over rows for the gradient of a weight that all rows share: fixed blocks of rows on their own, then the blocks in
// order. The same bits for every number of threads.
#pragma once
#include "cpu/parallel.h"
#include "cpu/simd.h"

namespace rz::cpu {

struct RowBlocks {
  int64_t rows, block, count;
  explicit RowBlocks(int64_t rows)
      : rows(rows), block(std::max<int64_t>(32, (rows + 255) / 256)), count((rows + block - 1) / block) {}
  int64_t first(int64_t b) const { return b * block; }
  int64_t size(int64_t b) const { return std::min(block, rows - b * block); }
};

// out (n) (+)= the sum of `blocks` rows of `sums`, which start `stride` apart. Overwrites `sums` and `total` (n).
inline void write_block_sums(const View& out, bool accumulate, float* sums, int64_t blocks, int64_t stride,
                             float* total) {
  const Table& t = simd();
  const int64_t n = out.numel;
  if (accumulate)
    t.to_f32[index_of(out.dtype)](total, out.data, n);
  else
    std::fill(total, total + n, 0.0f);
  if (blocks > 0) {
    for (int64_t b = 1; b < blocks; ++b) t.add[0](sums, sums, sums + b * stride, n);
    t.add[0](total, total, sums, n);
  }
  t.from_f32[index_of(out.dtype)](out.data, total, n);
}

}  // namespace rz::cpu
