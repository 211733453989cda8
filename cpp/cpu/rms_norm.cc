// RMSNorm. The weight gradient is summed in fixed blocks of rows, then over the blocks in order: the same bits for
// every number of threads.
#include "ops/rms_norm.h"

#include "cpu/parallel.h"
#include "cpu/scratch.h"
#include "cpu/simd.h"

namespace rz::cpu {

static int64_t row_grain(int64_t dim) { return std::max<int64_t>(1, (1 << 14) / std::max<int64_t>(1, dim)); }

void run(const RmsNormForward& op) {
  parallel_for(op.rows, row_grain(op.dim), [&](int64_t r, int64_t end) {
    simd().rms_norm_forward[index_of(op.x.dtype)](at(op.y, r * op.dim), op.rstd.as<float>() + r, at(op.x, r * op.dim),
                                                  op.w.data, end - r, op.dim, op.eps);
  });
}

void run(const RmsNormBackward& op) {
  const int64_t block = std::max<int64_t>(32, (op.rows + 255) / 256), blocks = (op.rows + block - 1) / block;
  Scratch scratch(op.dw ? (blocks + 1) * op.dim * 4 : 0);
  float* sums = op.dw ? scratch.as() : nullptr;  // (blocks, dim)
  parallel_for(blocks, 1, [&](int64_t first, int64_t last) {
    for (int64_t b = first; b < last; ++b) {
      int64_t r = b * block, offset = r * op.dim;
      float* block_sums = sums ? sums + b * op.dim : nullptr;
      if (sums) std::fill(block_sums, block_sums + op.dim, 0.0f);
      simd().rms_norm_backward[index_of(op.x.dtype)](at(op.dx, offset), block_sums, at(op.dy, offset),
                                                     at(op.x, offset), op.w.data, op.rstd.as<float>() + r,
                                                     op.residual ? at(op.residual, offset) : nullptr,
                                                     std::min(block, op.rows - r), op.dim);
    }
  });
  if (!op.dw) return;
  float* total = sums + blocks * op.dim;
  if (op.accumulate)
    simd().to_f32[index_of(op.dw.dtype)](total, op.dw.data, op.dim);
  else
    std::fill(total, total + op.dim, 0.0f);
  if (blocks > 0) {
    for (int64_t b = 1; b < blocks; ++b) simd().add[0](sums, sums, sums + b * op.dim, op.dim);
    simd().add[0](total, total, sums, op.dim);
  }
  simd().from_f32[index_of(op.dw.dtype)](op.dw.data, total, op.dim);
}

}  // namespace rz::cpu
