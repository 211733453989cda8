// Linear: y = x wᵀ + b, with w (out, in) as in torch.nn.Linear; its three products.
#pragma once
#include "ops/op.h"

namespace rz {

struct LinearForward {
  static constexpr const char* name = "linear_forward";
  View y;  // (rows, out); the compute dtype, or float32 for bfloat16 operands
  View x;  // (rows, in)
  View w;  // (out, in)
  View b;  // (out), optional
  int64_t rows, in, out;
  void check() const {
    expect_numel(name, "y", y, rows * out);
    expect_numel(name, "x", x, rows * in);
    expect_numel(name, "w", w, out * in);
    if (b) expect_numel(name, "b", b, out);
    expect_floating(name, "x", x);
    expect_dtype(name, "w", w, x.dtype);
  }
};

// dx (+)= dy w
struct LinearBackwardInput {
  static constexpr const char* name = "linear_backward_input";
  View dx;  // (rows, in)
  View dy;  // (rows, out)
  View w;   // (out, in)
  int64_t rows, in, out;
  bool accumulate;
  void check() const {
    expect_numel(name, "dx", dx, rows * in);
    expect_numel(name, "dy", dy, rows * out);
    expect_numel(name, "w", w, out * in);
    expect_floating(name, "dy", dy);
    expect_dtype(name, "w", w, dy.dtype);
  }
};

// dw (+)= dyᵀ x; db (+)= column sums of dy
struct LinearBackwardWeight {
  static constexpr const char* name = "linear_backward_weight";
  View dw;  // (out, in) float32 or the compute dtype
  View db;  // (out), optional, dtype of dw
  View dy;  // (rows, out)
  View x;   // (rows, in)
  int64_t rows, in, out;
  bool accumulate;
  void check() const {
    expect_numel(name, "dw", dw, out * in);
    if (db) expect_numel(name, "db", db, out);
    expect_numel(name, "dy", dy, rows * out);
    expect_numel(name, "x", x, rows * in);
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
