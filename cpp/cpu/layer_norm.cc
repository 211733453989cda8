#include "ops/layer_norm.h"

#include "cpu/row_sums.h"
#include "cpu/scratch.h"

namespace rz::cpu {

static int64_t row_grain(int64_t dim) { return std::max<int64_t>(1, (1 << 14) / std::max<int64_t>(1, dim)); }

void run(const LayerNormForward& op) {
  parallel_for(op.rows, row_grain(op.dim), [&](int64_t r, int64_t end) {
    simd().layer_norm_forward[index_of(op.x.dtype)](at(op.y, r * op.dim), op.mean.as<float>() + r,
                                                    op.rstd.as<float>() + r, at(op.x, r * op.dim), op.w.data,
                                                    op.b.data, end - r, op.dim, op.eps);
  });
}

void run(const LayerNormBackward& op) {
  const RowBlocks blocks(op.rows);
  const bool wanted = op.dw || op.db;
  const int64_t width = 2 * op.dim;
  Scratch scratch(wanted ? (blocks.count * width + op.dim) * 4 : 0);
  float* sums = wanted ? scratch.as() : nullptr;  // (blocks, 2, dim): of dw, then of db
  parallel_for(blocks.count, 1, [&](int64_t first, int64_t last) {
    for (int64_t b = first; b < last; ++b) {
      int64_t r = blocks.first(b), offset = r * op.dim;
      float* block_sums = wanted ? sums + b * width : nullptr;
      if (wanted) std::fill(block_sums, block_sums + width, 0.0f);
      simd().layer_norm_backward[index_of(op.x.dtype)](at(op.dx, offset), block_sums, at(op.dy, offset),
                                                       at(op.x, offset), op.w.data, op.mean.as<float>() + r,
                                                       op.rstd.as<float>() + r, blocks.size(b), op.dim);
    }
  });
  float* total = sums + (wanted ? blocks.count * width : 0);
  if (op.dw) write_block_sums(op.dw, op.accumulate_w, sums, blocks.count, width, total);
  if (op.db) write_block_sums(op.db, op.accumulate_b, sums + op.dim, blocks.count, width, total);
}

}  // namespace rz::cpu
