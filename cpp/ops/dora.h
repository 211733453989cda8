// DoRA: the columns of a product get a length of their own, y = x · m / ‖w‖, where row j of the weight made column j of x. The lengths
// of the rows are no part of the graph.
#pragma once
#include "ops/op.h"

namespace rz {

// squares[r] = Σ over columns of (w + update)², in float32 or wider.
struct RowSquares {
  static constexpr const char* name = "row_squares";
  View squares;         // (rows) float32
  View w;               // (rows, cols)
  OptionalView update;  // (rows, cols), dtype of w
  int64_t rows, cols;
  RZ_OPERANDS(squares, w, update, rows, cols)
  void check() const {
    expect_numel(name, "squares", squares, rows);
    expect_dtype(name, "squares", squares, DType::Float32);
    expect_numel(name, "w", w, rows * cols);
    expect_floating(name, "w", w);
    if (!update) return;
    expect_numel(name, "update", update, rows * cols);
    expect_dtype(name, "update", update, w.dtype);
  }
};

// y = x · m / √squares, column by column; y may be x.
struct DoraForward {
  static constexpr const char* name = "dora_forward";
  View y, x;     // (rows, dim)
  View m;        // (dim) any floating dtype
  View squares;  // (dim) float32
  int64_t rows, dim;
  RZ_OPERANDS(y, x, m, squares, rows, dim)
  void check() const {
    expect_numel(name, "y", y, rows * dim);
    expect_numel(name, "x", x, rows * dim);
    expect_numel(name, "m", m, dim);
    expect_numel(name, "squares", squares, dim);
    expect_floating(name, "x", x);
    expect_floating(name, "m", m);
    expect_dtype(name, "y", y, x.dtype);
    expect_dtype(name, "squares", squares, DType::Float32);
  }
};

// dm (+)= Σ over rows of dy · x / √squares; dx is DoraForward of dy.
struct DoraBackward {
  static constexpr const char* name = "dora_backward";
  View dm;       // (dim) float32 or the compute dtype
  View dy, x;    // (rows, dim)
  View squares;  // (dim) float32
  int64_t rows, dim;
  bool accumulate;
  RZ_OPERANDS(dm, dy, x, squares, rows, dim, accumulate)
  void check() const {
    expect_numel(name, "dm", dm, dim);
    expect_numel(name, "dy", dy, rows * dim);
    expect_numel(name, "x", x, rows * dim);
    expect_numel(name, "squares", squares, dim);
    expect_floating(name, "x", x);
    expect_floating(name, "dm", dm);
    expect_dtype(name, "dy", dy, x.dtype);
    expect_dtype(name, "squares", squares, DType::Float32);
  }
};

namespace cpu {
void run(const RowSquares&);
void run(const DoraForward&);
void run(const DoraBackward&);
}  // namespace cpu

namespace cuda {
void run(const RowSquares&, CudaStream&);
void run(const DoraForward&, CudaStream&);
void run(const DoraBackward&, CudaStream&);
}  // namespace cuda
}  // namespace rz
