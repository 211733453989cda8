// Rotary position embedding, half-rotation (rotate_half) on the first `rotary` elements of each head; the rest passes.
#pragma once
#include "ops/op.h"

namespace rz {

// cos/sin of float32(position · inv_freq), correctly rounded to float32, times `attention_factor`.
struct RopeTable {
  static constexpr const char* name = "rope_table";
  View cos, sin;   // (rows, half) float32
  View positions;  // (rows) int64
  View inv_freq;   // (half) float32
  int64_t rows, half;
  float attention_factor;
  RZ_OPERANDS(cos, sin, positions, inv_freq, rows, half, attention_factor)
  void check() const {
    expect_numel(name, "cos", cos, rows * half);
    expect_numel(name, "sin", sin, rows * half);
    expect_numel(name, "positions", positions, rows);
    expect_dtype(name, "positions", positions, DType::Int64);
    expect_numel(name, "inv_freq", inv_freq, half);
    expect_dtype(name, "inv_freq", inv_freq, DType::Float32);
  }
};

// y may be x (in place). `inverse` rotates by the negative angle: the gradient of the forward.
// cos and sin are rounded to the compute dtype before use, as Transformers does.
struct Rope {
  static constexpr const char* name = "rope";
  View y, x;      // (rows, heads, head_dim)
  View cos, sin;  // (rows, rotary / 2) float32
  int64_t rows, heads, head_dim, rotary;
  bool inverse;
  RZ_OPERANDS(y, x, cos, sin, rows, heads, head_dim, rotary, inverse)
  void check() const {
    expect(rotary % 2 == 0 && rotary <= head_dim, name, "rotary must be even and at most head_dim");
    expect_numel(name, "y", y, rows * heads * head_dim);
    expect_numel(name, "x", x, rows * heads * head_dim);
    expect_numel(name, "cos", cos, rows * rotary / 2);
    expect_numel(name, "sin", sin, rows * rotary / 2);
    expect_floating(name, "x", x);
    expect_dtype(name, "y", y, x.dtype);
    expect_dtype(name, "cos", cos, DType::Float32);
  }
};

namespace cpu {
void run(const RopeTable&);
void run(const Rope&);
}  // namespace cpu

namespace cuda {
void run(const RopeTable&, CudaStream&);
void run(const Rope&, CudaStream&);
}  // namespace cuda
}  // namespace rz
