// RMSNorm as Llama has it: y = cast(x · rsqrt(mean(x²) + eps)) · w, the statistics in float32.
#pragma once
#include "ops/op.h"

namespace rz {

struct RmsNormForward {
  static constexpr const char* name = "rms_norm_forward";
  View y;     // (rows, dim)
  View rstd;  // (rows) float32, kept for backward
  View x;     // (rows, dim)
  View w;     // (dim)
  int64_t rows, dim;
  float eps;
  RZ_OPERANDS(y, rstd, x, w, rows, dim, eps)
  void check() const {
    expect_numel(name, "y", y, rows * dim);
    expect_numel(name, "rstd", rstd, rows);
    expect_dtype(name, "rstd", rstd, DType::Float32);
    expect_numel(name, "x", x, rows * dim);
    expect_numel(name, "w", w, dim);
    expect_floating(name, "x", x);
    expect_dtype(name, "w", w, x.dtype);
    expect_dtype(name, "y", y, x.dtype);
  }
};

struct RmsNormBackward {
  static constexpr const char* name = "rms_norm_backward";
  View dx;          // (rows, dim)
  OptionalView dw;  // (dim) float32 or the compute dtype; absent: frozen
  View dy;          // (rows, dim)
  View x;           // (rows, dim)
  View w;           // (dim)
  View rstd;        // (rows) float32
  OptionalView earlier;  // (rows, dim): the gradient from other uses of x, which is added to dx; may be dx
  int64_t rows, dim;
  bool accumulate;  // dw only
  RZ_OPERANDS(dx, dw, dy, x, w, rstd, earlier, rows, dim, accumulate)
  void check() const {
    expect_numel(name, "dx", dx, rows * dim);
    if (dw) expect_numel(name, "dw", dw, dim);
    expect_numel(name, "dy", dy, rows * dim);
    expect_numel(name, "x", x, rows * dim);
    expect_numel(name, "w", w, dim);
    expect_numel(name, "rstd", rstd, rows);
    expect_floating(name, "x", x);
    expect_dtype(name, "dy", dy, x.dtype);
    expect_dtype(name, "w", w, x.dtype);
    expect_dtype(name, "dx", dx, x.dtype);
    if (earlier) {
      expect_numel(name, "earlier", earlier, rows * dim);
      expect_dtype(name, "earlier", earlier, x.dtype);
    }
  }
};

namespace cpu {
void run(const RmsNormForward&);
void run(const RmsNormBackward&);
}  // namespace cpu

namespace cuda {
void run(const RmsNormForward&, CudaStream&);
void run(const RmsNormBackward&, CudaStream&);
}  // namespace cuda
}  // namespace rz
