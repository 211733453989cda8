// Linear: y = x wᵀ + b (+ a residual), with w (out_features, in_features) as in torch.nn.Linear; its three GEMMs.
#pragma once
#include "ops/op.h"

namespace rz {

struct LinearForward {
  static constexpr const char* name = "linear_forward";
  View y;          // (rows, out_features); the compute dtype, or float32 for bfloat16 operands
  View x;          // (rows, in_features)
  View w;          // (out_features, in_features)
  OptionalView b;  // (out_features)
  OptionalView residual;  // (rows, out_features), dtype of y; may be y
  int64_t rows, in_features, out_features;
  RZ_OPERANDS(y, x, w, b, residual, rows, in_features, out_features)
  void check() const {
    expect_numel(name, "y", y, rows * out_features);
    expect_numel(name, "x", x, rows * in_features);
    expect_numel(name, "w", w, out_features * in_features);
    if (b) expect_numel(name, "b", b, out_features);
    if (residual) {
      expect_numel(name, "residual", residual, y.numel);
      expect_dtype(name, "residual", residual, y.dtype);
    }
    expect_floating(name, "x", x);
    expect_dtype(name, "w", w, x.dtype);
  }
};

// dx = dy w (+ earlier)
struct LinearBackwardInput {
  static constexpr const char* name = "linear_backward_input";
  View dx;  // (rows, in_features)
  View dy;  // (rows, out_features)
  View w;   // (out_features, in_features)
  OptionalView earlier;  // (rows, in_features), dtype of dx: the gradient from other uses of x; may be dx
  int64_t rows, in_features, out_features;
  RZ_OPERANDS(dx, dy, w, earlier, rows, in_features, out_features)
  void check() const {
    expect_numel(name, "dx", dx, rows * in_features);
    expect_numel(name, "dy", dy, rows * out_features);
    expect_numel(name, "w", w, out_features * in_features);
    expect_floating(name, "dy", dy);
    expect_dtype(name, "w", w, dy.dtype);
    if (earlier) {
      expect_numel(name, "earlier", earlier, dx.numel);
      expect_dtype(name, "earlier", earlier, dx.dtype);
    }
  }
};

// dw (+)= dyᵀ x; db (+)= column sums of dy
struct LinearBackwardWeight {
  static constexpr const char* name = "linear_backward_weight";
  View dw;          // (out_features, in_features) float32 or the compute dtype
  OptionalView db;  // (out_features), dtype of dw
  View dy;          // (rows, out_features)
  View x;           // (rows, in_features)
  int64_t rows, in_features, out_features;
  bool accumulate;
  RZ_OPERANDS(dw, db, dy, x, rows, in_features, out_features, accumulate)
  void check() const {
    expect_numel(name, "dw", dw, out_features * in_features);
    if (db) expect_numel(name, "db", db, out_features);
    expect_numel(name, "dy", dy, rows * out_features);
    expect_numel(name, "x", x, rows * in_features);
    expect_floating(name, "x", x);
    expect_dtype(name, "dy", dy, x.dtype);
  }
};

namespace cpu {
void run(const LinearForward&);
void run(const LinearBackwardInput&);
void run(const LinearBackwardWeight&);
}  // namespace cpu

namespace cuda {
void run(const LinearForward&, CudaStream&);
void run(const LinearBackwardInput&, CudaStream&);
void run(const LinearBackwardWeight&, CudaStream&);
}  // namespace cuda
}  // namespace rz
