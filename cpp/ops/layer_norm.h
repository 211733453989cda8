// LayerNorm: y = (x − mean) · rstd · w + b with rstd = 1 / sqrt(variance + eps), everything but operands in float32.
#pragma once
#include "ops/op.h"

namespace rz {

struct LayerNormForward {
  static constexpr const char* name = "layer_norm_forward";
  View y;           // (rows, dim)
  View mean, rstd;  // (rows) float32, kept for backward
  View x;           // (rows, dim)
  View w, b;        // (dim)
  int64_t rows, dim;
  float eps;
  RZ_OPERANDS(y, mean, rstd, x, w, b, rows, dim, eps)
  void check() const {
    expect_numel(name, "y", y, rows * dim);
    expect_numel(name, "mean", mean, rows);
    expect_dtype(name, "mean", mean, DType::Float32);
    expect_numel(name, "rstd", rstd, rows);
    expect_dtype(name, "rstd", rstd, DType::Float32);
    expect_numel(name, "x", x, rows * dim);
    expect_numel(name, "w", w, dim);
    expect_numel(name, "b", b, dim);
    expect_floating(name, "x", x);
    expect_dtype(name, "w", w, x.dtype);
    expect_dtype(name, "b", b, x.dtype);
    expect_dtype(name, "y", y, x.dtype);
  }
};

struct LayerNormBackward {
  static constexpr const char* name = "layer_norm_backward";
  View dx;              // (rows, dim)
  OptionalView dw, db;  // (dim) float32 or the compute dtype; absent: frozen
  View dy;              // (rows, dim)
  View x;               // (rows, dim)
  View w;               // (dim)
  View mean, rstd;      // (rows) float32
  int64_t rows, dim;
  bool accumulate_w, accumulate_b;  // of dw and of db
  RZ_OPERANDS(dx, dw, db, dy, x, w, mean, rstd, rows, dim, accumulate_w, accumulate_b)
  void check() const {
    expect_numel(name, "dx", dx, rows * dim);
    if (dw) expect_numel(name, "dw", dw, dim);
    if (dw) expect_floating(name, "dw", dw);
    if (db) expect_numel(name, "db", db, dim);
    if (db) expect_floating(name, "db", db);
    expect_numel(name, "dy", dy, rows * dim);
    expect_numel(name, "x", x, rows * dim);
    expect_numel(name, "w", w, dim);
    expect_numel(name, "mean", mean, rows);
    expect_dtype(name, "mean", mean, DType::Float32);
    expect_numel(name, "rstd", rstd, rows);
    expect_dtype(name, "rstd", rstd, DType::Float32);
    expect_floating(name, "x", x);
    expect_dtype(name, "dy", dy, x.dtype);
    expect_dtype(name, "w", w, x.dtype);
    expect_dtype(name, "dx", dx, x.dtype);
  }
};

namespace cpu {
void run(const LayerNormForward&);
void run(const LayerNormBackward&);
}  // namespace cpu

namespace cuda {
void run(const LayerNormForward&, CudaStream&);
void run(const LayerNormBackward&, CudaStream&);
}  // namespace cuda
}  // namespace rz
