#include "ops/dora.h"

#include <cmath>

#include "cpu/row_sums.h"
#include "cpu/scratch.h"

namespace rz::cpu {

static int64_t row_grain(int64_t dim) { return std::max<int64_t>(1, (1 << 14) / std::max<int64_t>(1, dim)); }

void run(const RowSquares& op) {
  const Table& table = simd();
  const int type = index_of(op.w.dtype);
  parallel_for(op.rows, row_grain(op.cols), [&](int64_t begin, int64_t end) {
    Scratch scratch(op.update ? 2 * op.cols * 4 : 0);
    float *row = scratch.as(), *update = row + op.cols;
    for (int64_t r = begin; r < end; ++r) {
      const char* w = at(op.w, r * op.cols);
      if (op.update) {
        table.to_f32[type](row, w, op.cols);
        table.to_f32[type](update, at(op.update, r * op.cols), op.cols);
        table.add[0](row, row, update, op.cols);
      }
      op.squares.as<float>()[r] =
          static_cast<float>(op.update ? table.sum_squares[0](row, op.cols) : table.sum_squares[type](w, op.cols));
    }
  });
}

// factors (dim) = 1 / √squares.
static void inverse_lengths(float* factors, const View& squares) {
  for (int64_t i = 0; i < squares.numel; ++i) factors[i] = 1.0f / std::sqrt(squares.as<float>()[i]);
}

void run(const DoraForward& op) {
  const Table& table = simd();
  const int type = index_of(op.x.dtype);
  Scratch scratch(2 * op.dim * 4);
  float *factors = scratch.as(), *m = factors + op.dim;
  inverse_lengths(factors, op.squares);
  table.to_f32[index_of(op.m.dtype)](m, op.m.data, op.dim);
  for (int64_t i = 0; i < op.dim; ++i) factors[i] *= m[i];
  parallel_for(op.rows, row_grain(op.dim), [&](int64_t begin, int64_t end) {
    Scratch own(op.dim * 4);
    float* row = own.as();
    for (int64_t r = begin; r < end; ++r) {
      table.to_f32[type](row, at(op.x, r * op.dim), op.dim);
      for (int64_t i = 0; i < op.dim; ++i) row[i] *= factors[i];
      table.from_f32[type](at(op.y, r * op.dim), row, op.dim);
    }
  });
}

void run(const DoraBackward& op) {
  const Table& table = simd();
  const int type = index_of(op.x.dtype);
  const RowBlocks blocks(op.rows);
  Scratch scratch((blocks.count + 2) * op.dim * 4);
  float *sums = scratch.as(), *total = sums + blocks.count * op.dim, *factors = total + op.dim;
  inverse_lengths(factors, op.squares);
  parallel_for(blocks.count, 1, [&](int64_t first, int64_t last) {
    Scratch own(2 * op.dim * 4);
    float *x = own.as(), *dy = x + op.dim;
    for (int64_t b = first; b < last; ++b) {
      float* sum = sums + b * op.dim;
      std::fill(sum, sum + op.dim, 0.0f);
      for (int64_t r = blocks.first(b); r < blocks.first(b) + blocks.size(b); ++r) {
        table.to_f32[type](x, at(op.x, r * op.dim), op.dim);
        table.to_f32[type](dy, at(op.dy, r * op.dim), op.dim);
        for (int64_t i = 0; i < op.dim; ++i) sum[i] += dy[i] * x[i];
      }
      for (int64_t i = 0; i < op.dim; ++i) sum[i] *= factors[i];
    }
  });
  write_block_sums(op.dm, op.accumulate, sums, blocks.count, op.dim, total);
}

}  // namespace rz::cpu
