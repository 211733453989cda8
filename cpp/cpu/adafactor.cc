// Sums do not depend on the number of threads: a row, or a tile of columns, is summed by one.
#include "ops/adafactor.h"

#include <algorithm>
#include <cmath>

#include "cpu/parallel.h"
#include "cpu/scratch.h"
#include "cpu/simd.h"

namespace rz::cpu {
namespace {

// Elements of a slice that lie in one row of the matrix.
struct RowRun {
  int64_t index;       // which of the slice's rows
  int64_t row, column; // of the first, in the matrix
  int64_t at, length;  // within the slice
};

struct Rows {
  int64_t n, first, width, row, column;
  int64_t count() const { return n == 0 ? 0 : (first + n - 1) / width - first / width + 1; }
  RowRun run(int64_t index) const {
    const int64_t block_row = first / width + index;
    const int64_t begin = std::max(first, block_row * width), end = std::min(first + n, (block_row + 1) * width);
    return {index, row + block_row, column + begin % width, begin - first, end - begin};
  }
};

template <class Op>
Rows rows_of(const Op& op) {
  return {op.grad.numel, op.first, op.width, op.row, op.column};
}

// A vector is one row.
template <class Op>
Rows moments_of(const Op& op) {
  if (op.variance) return {op.grad.numel, 0, std::max<int64_t>(1, op.grad.numel), 0, 0};
  return rows_of(op);
}

template <class F>
void each_row(const Rows& rows, F&& f) {
  const int64_t grain = std::max<int64_t>(1, (1 << 14) / rows.width);
  parallel_for(rows.count(), grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) f(rows.run(i));
  });
}

float scale_of(const OptionalView& grad_scale) { return grad_scale ? *grad_scale.as<float>() : 1.0f; }

// What the update of the elements of a row is computed from.
template <class Op>
AdafactorScalars scalars_of(const Op& op) {
  AdafactorScalars s{};
  s.row = 1.0f;
  const auto eps1 = static_cast<float>(op.eps1);
  s.mean = op.variance ? 1.0f : std::max(*op.mean.template as<float>(), eps1);
  s.floor = eps1 * eps1;
  s.grad_scale = scale_of(op.grad_scale);
  return s;
}

template <class Op>
const float* columns_of(const Op& op, const RowRun& run, AdafactorScalars& s) {
  if (op.variance) return op.variance.template as<float>() + run.at;
  s.row = op.rows.template as<float>()[run.row];
  return op.columns.template as<float>() + run.column;
}

}  // namespace

void run(const AdafactorSums& op) {
  const Rows rows = rows_of(op);
  const int dtype = index_of(op.grad.dtype);
  const double scale = scale_of(op.grad_scale), factor = scale * scale;
  each_row(rows, [&](const RowRun& run) {
    op.row_sums.as<float>()[run.row] += static_cast<float>(factor * simd().sum_squares[dtype](at(op.grad, run.at), run.length));
  });
  if (rows.count() == 0) return;
  constexpr int64_t kTile = 256;
  const int64_t last = rows.count() - 1;
  parallel_for((op.width + kTile - 1) / kTile, 1, [&](int64_t begin, int64_t end) {
    for (int64_t tile = begin; tile < end; ++tile) {
      const int64_t from = tile * kTile, to = std::min(op.width, from + kTile);
      double sums[kTile] = {};
      auto add = [&](const RowRun& run, int64_t count) {
        const int64_t own = run.column - op.column;  // within the block
        const int64_t left = std::max(from, own), right = std::min(to, own + run.length);
        if (left < right)
          simd().column_squares[dtype](sums + (left - from), at(op.grad, run.at + left - own), op.width, count, right - left);
      };
      // The first and the last row may not be whole; all between them are.
      add(rows.run(0), 1);
      if (last > 1) add(rows.run(1), last - 1);
      if (last > 0) add(rows.run(last), 1);
      float* out = op.column_sums.as<float>() + op.column + from;
      for (int64_t c = 0; c < to - from; ++c) out[c] += static_cast<float>(factor * sums[c]);
    }
  });
}

void run(const AdafactorFactors& op) {
  const auto weight = static_cast<float>(op.weight);
  auto mix = [&](const View& factors, const View& sums, int64_t count) {
    auto v = factors.as<float>();
    auto sum = sums.as<float>();
    for (int64_t i = 0; i < factors.numel; ++i) v[i] += weight * (sum[i] / static_cast<float>(count) - v[i]);
  };
  mix(op.rows, op.row_sums, op.columns.numel);
  mix(op.columns, op.column_sums, op.rows.numel);
  double total = 0;
  for (int64_t i = 0; i < op.rows.numel; ++i) total += op.rows.as<float>()[i];
  *op.mean.as<float>() = static_cast<float>(total / static_cast<double>(op.rows.numel));
}

void run(const AdafactorNorm& op) {
  const Rows rows = moments_of(op);
  const AdafactorScalars plain = scalars_of(op);
  const int dtype = index_of(op.grad.dtype);
  Scratch scratch(std::max<int64_t>(1, rows.count()) * 8);
  double* sums = scratch.as<double>();
  each_row(rows, [&](const RowRun& run) {
    AdafactorScalars s = plain;
    if (op.variance)
      simd().adafactor_variance[dtype](op.variance.as<float>() + run.at, at(op.grad, run.at), run.length, s.grad_scale,
                                       static_cast<float>(op.weight));
    const float* columns = columns_of(op, run, s);
    sums[run.index] = simd().adafactor_norm[dtype](at(op.grad, run.at), columns, run.length, s);
  });
  double total = *op.out.as<float>();
  for (int64_t i = 0; i < rows.count(); ++i) total += sums[i];
  *op.out.as<float>() = static_cast<float>(total);
}

void run(const AdafactorStep& op) {
  const double root = std::sqrt(static_cast<double>(op.numel));
  const double alpha = std::max(op.eps2, std::sqrt(static_cast<double>(*op.param_squares.as<float>())) / root) * op.rho;
  const double denominator = std::max(1.0, std::sqrt(static_cast<double>(*op.update_squares.as<float>())) / (root * op.clip));
  AdafactorScalars plain = scalars_of(op);
  plain.decay = static_cast<float>(1.0 - op.lr * op.weight_decay);
  plain.step = static_cast<float>(alpha / denominator);
  auto kernel = simd().adafactor_step[index_of(op.param.dtype)][index_of(op.grad.dtype)];
  each_row(moments_of(op), [&](const RowRun& run) {
    AdafactorScalars s = plain;
    const float* columns = columns_of(op, run, s);
    kernel(at(op.param, run.at), at(op.grad, run.at), columns, run.length, s);
    if (op.copy) simd().from_f32[index_of(op.copy.dtype)](at(op.copy, run.at), op.param.as<float>() + run.at, run.length);
  });
}

}  // namespace rz::cpu
