// GEMMs by oneDNN. Accumulation is in float32 whatever the operands are.
#pragma once
#include "cpu/quantized.h"
#include "ops/op.h"

namespace rz::cpu {

// Elements lie at row · row_stride + column · column_stride; one of the strides is 1.
struct Matrix {
  void* data;
  DType dtype;
  int64_t row_stride, column_stride;
  Matrix transposed() const { return {data, dtype, column_stride, row_stride}; }
};

inline Matrix row_major(const View& v, int64_t columns) { return {v.data, v.dtype, columns, 1}; }

// c (m, n) = a (m, k) · b (k, n) + bias (n), + c if `accumulate`. a and b share a dtype; c has it or is float32 and has
// column stride 1. The bias is optional (null data).
void gemm(int64_t m, int64_t n, int64_t k, const Matrix& a, const Matrix& b, const Matrix& c, const View& bias,
          bool accumulate);

// The same with b = w, or wᵀ if `transposed`, in the dtype of a. w is widened by tiles.
void gemm(int64_t m, int64_t n, int64_t k, const Matrix& a, const QuantizedMatrix& w, bool transposed, const Matrix& c,
          const View& bias, bool accumulate);

}  // namespace rz::cpu
