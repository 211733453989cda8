#include "ops/rms_norm.h"

#include "cpu/row_sums.h"
#include "cpu/scratch.h"

namespace rz::cpu {

static int64_t row_grain(int64_t dim) { return std::max<int64_t>(1, (1 << 14) / std::max<int64_t>(1, dim)); }

void run(const RmsNormForward& op) {
  parallel_for(op.rows, row_grain(op.dim), [&](int64_t r, int64_t end) {
    simd().rms_norm_forward[index_of(op.x.dtype)](at(op.y, r * op.dim), op.rstd.as<float>() + r, at(op.x, r * op.dim),
                                                  op.w.data, end - r, op.dim, op.eps);
  });
}

void run(const RmsNormBackward& op) {
  const RowBlocks blocks(op.rows);
  Scratch scratch(op.dw ? (blocks.count + 1) * op.dim * 4 : 0);
  float* sums = op.dw ? scratch.as() : nullptr;  // (blocks, dim)
  const Table& table = simd();
  const int type = index_of(op.x.dtype);
  parallel_for(blocks.count, 1, [&](int64_t first, int64_t last) {
    for (int64_t b = first; b < last; ++b) {
      int64_t r = blocks.first(b), offset = r * op.dim;
      float* block_sums = sums ? sums + b * op.dim : nullptr;
      if (sums) std::fill(block_sums, block_sums + op.dim, 0.0f);
      const int64_t numel = blocks.size(b) * op.dim;
      Scratch own(op.earlier ? numel * size_of(op.dx.dtype) : 0);  // dx may be what it is added to
      void* dx = op.earlier ? own.as<void>() : at(op.dx, offset);
      table.rms_norm_backward[type](dx, block_sums, at(op.dy, offset), at(op.x, offset), op.w.data,
                                    op.rstd.as<float>() + r, blocks.size(b), op.dim);
      if (op.earlier) table.add[type](at(op.dx, offset), at(op.earlier, offset), dx, numel);
    }
  });
  if (op.dw) write_block_sums(op.dw, op.accumulate, sums, blocks.count, op.dim, sums + blocks.count * op.dim);
}

}  // namespace rz::cpu
