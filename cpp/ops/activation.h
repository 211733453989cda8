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
void run(const GeluForward&);
void run(const GeluBackward&);
}  // namespace cpu

namespace cuda {
void run(const SwigluForward&, CudaStream&);
void run(const SwigluBackward&, CudaStream&);
void run(const GeluForward&, CudaStream&);
void run(const GeluBackward&, CudaStream&);
}  // namespace cuda
}  // namespace rz
