// SwiGLU (silu(gate) · up) and GELU, element by element, computed in float32. GELU is x · Φ(x) by erf, or with `tanh` its
// older approximation ½x (1 + tanh(√(2/π) (x + 0.044715 x³))).
#pragma once
#include "ops/op.h"

namespace rz {

struct SwigluForward {
  static constexpr const char* name = "swiglu_forward";
  View y, gate, up;  // (n)
  RZ_OPERANDS(y, gate, up)
  void check() const {
    expect_numel(name, "gate", gate, y.numel);
    expect_numel(name, "up", up, y.numel);
    expect_floating(name, "y", y);
    expect_dtype(name, "gate", gate, y.dtype);
    expect_dtype(name, "up", up, y.dtype);
  }
};

struct SwigluBackward {
  static constexpr const char* name = "swiglu_backward";
  View d_gate, d_up, dy, gate, up;  // (n)
  RZ_OPERANDS(d_gate, d_up, dy, gate, up)
  void check() const {
    for (const View* t : {&d_gate, &d_up, &gate, &up}) {
      expect_numel(name, "operand", *t, dy.numel);
      expect_dtype(name, "operand", *t, dy.dtype);
    }
    expect_floating(name, "dy", dy);
  }
};

// The same with gate and up of one GEMM: each row of `gate_up` holds all of its gate, then all of its up.
struct PackedSwigluForward {
  static constexpr const char* name = "packed_swiglu_forward";
  View y;        // (rows, inner)
  View gate_up;  // (rows, 2 inner)
  int64_t rows, inner;
  RZ_OPERANDS(y, gate_up, rows, inner)
  void check() const {
    expect_numel(name, "y", y, rows * inner);
    expect_numel(name, "gate_up", gate_up, rows * 2 * inner);
    expect_floating(name, "y", y);
    expect_dtype(name, "gate_up", gate_up, y.dtype);
  }
};

struct PackedSwigluBackward {
  static constexpr const char* name = "packed_swiglu_backward";
  View d_gate_up;  // (rows, 2 inner)
  View dy;         // (rows, inner)
  View gate_up;    // (rows, 2 inner)
  int64_t rows, inner;
  RZ_OPERANDS(d_gate_up, dy, gate_up, rows, inner)
  void check() const {
    expect_numel(name, "dy", dy, rows * inner);
    expect_floating(name, "dy", dy);
    for (const View* t : {&d_gate_up, &gate_up}) {
      expect_numel(name, "operand", *t, rows * 2 * inner);
      expect_dtype(name, "operand", *t, dy.dtype);
    }
  }
};

struct GeluForward {
  static constexpr const char* name = "gelu_forward";
  View y, x;  // (n)
  bool tanh;
  RZ_OPERANDS(y, x, tanh)
  void check() const {
    expect_numel(name, "x", x, y.numel);
    expect_floating(name, "x", x);
    expect_dtype(name, "y", y, x.dtype);
  }
};

struct GeluBackward {
  static constexpr const char* name = "gelu_backward";
  View dx, dy, x;  // (n)
  bool tanh;
  RZ_OPERANDS(dx, dy, x, tanh)
  void check() const {
    expect_numel(name, "dx", dx, x.numel);
    expect_numel(name, "dy", dy, x.numel);
    expect_floating(name, "x", x);
    expect_dtype(name, "dy", dy, x.dtype);
    expect_dtype(name, "dx", dx, x.dtype);
  }
};

namespace cpu {
void run(const SwigluForward&);
void run(const SwigluBackward&);
void run(const PackedSwigluForward&);
void run(const PackedSwigluBackward&);
void run(const GeluForward&);
void run(const GeluBackward&);
}  // namespace cpu

namespace cuda {
void run(const SwigluForward&, CudaStream&);
void run(const SwigluBackward&, CudaStream&);
void run(const PackedSwigluForward&, CudaStream&);
void run(const PackedSwigluBackward&, CudaStream&);
void run(const GeluForward&, CudaStream&);
void run(const GeluBackward&, CudaStream&);
}  // namespace cuda
}  // namespace rz
