// Adafactor, as torch.optim.Adafactor: the second moment of a matrix is the product of a mean for each row and one for each column,
// over the mean of the rows; that of a vector is kept whole. An update of one parameter is four ops, with sums over the ranks that
// hold it behind the first and the third: sums, factors, norm, step.
//
// Elements of a slice are consecutive elements of a block of the matrix: element i is number first + i of a block of `width`
// columns, whose first element is (row, column) of the matrix.
#pragma once
#include "ops/op.h"

namespace rz {

namespace detail {
inline void expect_float32(const char* op, const char* what, const View& v) { expect_dtype(op, what, v, DType::Float32); }
inline void expect_scale(const char* op, const OptionalView& v) {
  if (!v) return;
  expect_numel(op, "grad_scale", v, 1);
  expect_float32(op, "grad_scale", v);
}
// The block reaches neither beyond the rows nor beyond the columns.
inline void expect_inside(const char* op, int64_t n, int64_t rows, int64_t columns, int64_t first, int64_t width, int64_t row, int64_t column) {
  expect(first >= 0 && width > 0 && row >= 0 && column >= 0, op, "first, width, row and column must not be negative");
  expect(column + width <= columns && (n == 0 || row + (first + n - 1) / width < rows), op, "the elements reach beyond the matrix");
}
// Either the variance of each element, or the factors of a matrix.
inline void expect_moments(const char* op, const View& grad, const OptionalView& variance, const OptionalView& rows, const OptionalView& columns,
                           const OptionalView& mean) {
  expect(variance ? !rows && !columns && !mean : rows && columns && mean, op, "wants a variance, or rows, columns and their mean");
  for (const OptionalView* v : {&variance, &rows, &columns, &mean})
    if (*v) expect_float32(op, "variance, rows, columns and mean", *v);
  if (variance) expect_numel(op, "variance", variance, grad.numel);
  else expect_numel(op, "mean", mean, 1);
}
}  // namespace detail

// Adds the squares of the gradient to the sums of its rows and columns.
struct AdafactorSums {
  static constexpr const char* name = "adafactor_sums";
  View row_sums;            // (rows) float32, accumulated
  View column_sums;         // (columns) float32, accumulated
  View grad;                // (n) any floating dtype
  OptionalView grad_scale;  // (1) float32: multiplies the gradient (clipping)
  int64_t first, width, row, column;
  RZ_OPERANDS(row_sums, column_sums, grad, grad_scale, first, width, row, column)
  void check() const {
    detail::expect_float32(name, "row_sums", row_sums);
    detail::expect_float32(name, "column_sums", column_sums);
    expect_floating(name, "grad", grad);
    detail::expect_scale(name, grad_scale);
    detail::expect_inside(name, grad.numel, row_sums.numel, column_sums.numel, first, width, row, column);
  }
};

// rows += weight · (row_sums / columns − rows), the same for columns, and the mean of the rows.
struct AdafactorFactors {
  static constexpr const char* name = "adafactor_factors";
  View rows;         // (rows) float32
  View columns;      // (columns) float32
  View mean;         // (1) float32
  View row_sums;     // (rows) float32, of all ranks
  View column_sums;  // (columns) float32
  double weight;     // 1 - beta2 of this step
  RZ_OPERANDS(rows, columns, mean, row_sums, column_sums, weight)
  void check() const {
    for (const View* v : {&rows, &columns, &mean, &row_sums, &column_sums}) detail::expect_float32(name, "every operand", *v);
    expect_numel(name, "row_sums", row_sums, rows.numel);
    expect_numel(name, "column_sums", column_sums, columns.numel);
    expect_numel(name, "mean", mean, 1);
  }
};

// Adds the squares of the update before clipping to `out`. A variance is brought up to date first.
struct AdafactorNorm {
  static constexpr const char* name = "adafactor_norm";
  View out;                             // (1) float32, accumulated
  View grad;                            // (n) any floating dtype
  OptionalView grad_scale;              // (1) float32
  OptionalView variance;                // (n) float32
  OptionalView rows, columns, mean;     // float32
  int64_t first, width, row, column;    // of a matrix
  double eps1, weight;
  RZ_OPERANDS(out, grad, grad_scale, variance, rows, columns, mean, first, width, row, column, eps1, weight)
  void check() const {
    expect_numel(name, "out", out, 1);
    detail::expect_float32(name, "out", out);
    expect_floating(name, "grad", grad);
    detail::expect_scale(name, grad_scale);
    detail::expect_moments(name, grad, variance, rows, columns, mean);
    if (rows) detail::expect_inside(name, grad.numel, rows.numel, columns.numel, first, width, row, column);
  }
};

// param = param · (1 − lr · weight_decay) − rho · max(eps2, RMS(param)) / max(1, RMS(update) / clip) · update
struct AdafactorStep {
  static constexpr const char* name = "adafactor_step";
  View param;                         // (n) float32 or bfloat16
  View grad;                          // (n) any floating dtype
  OptionalView grad_scale;            // (1) float32
  OptionalView copy;                  // (n) any floating dtype: the updated float32 parameters, cast in the same pass
  OptionalView variance;              // (n) float32
  OptionalView rows, columns, mean;   // float32
  View param_squares, update_squares; // (1) float32, of the whole parameter
  int64_t first, width, row, column;  // of a matrix
  int64_t numel;                      // of the whole parameter
  double lr, rho, eps1, eps2, clip, weight_decay;
  RZ_OPERANDS(param, grad, grad_scale, copy, variance, rows, columns, mean, param_squares, update_squares, first, width, row, column,
              numel, lr, rho, eps1, eps2, clip, weight_decay)
  void check() const {
    expect_numel(name, "grad", grad, param.numel);
    expect_floating(name, "param", param);
    expect_floating(name, "grad", grad);
    detail::expect_scale(name, grad_scale);
    detail::expect_moments(name, grad, variance, rows, columns, mean);
    if (rows) detail::expect_inside(name, grad.numel, rows.numel, columns.numel, first, width, row, column);
    for (const View* v : {&param_squares, &update_squares}) {
      expect_numel(name, "sums of squares", *v, 1);
      detail::expect_float32(name, "sums of squares", *v);
    }
    expect(numel > 0, name, "numel must be positive");
    if (copy) {
      expect_numel(name, "copy", copy, param.numel);
      expect_floating(name, "copy", copy);
      expect_dtype(name, "param with a copy", param, DType::Float32);
    }
  }
};

namespace cpu {
void run(const AdafactorSums&);
void run(const AdafactorFactors&);
void run(const AdafactorNorm&);
void run(const AdafactorStep&);
}  // namespace cpu

namespace cuda {
void run(const AdafactorSums&, CudaStream&);
void run(const AdafactorFactors&, CudaStream&);
void run(const AdafactorNorm&, CudaStream&);
void run(const AdafactorStep&, CudaStream&);
}  // namespace cuda
}  // namespace rz
