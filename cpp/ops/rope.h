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

// The queries, keys and values of one GEMM, taken apart; queries and keys are turned on their way.
struct SplitRope {
  static constexpr const char* name = "split_rope";
  View q;         // (rows, heads, head_dim)
  View k, v;      // (rows, kv_heads, head_dim)
  View qkv;       // (rows, heads + 2 kv_heads, head_dim): all of q, then k, then v
  View cos, sin;  // (rows, rotary / 2) float32
  int64_t rows, heads, kv_heads, head_dim, rotary;
  RZ_OPERANDS(q, k, v, qkv, cos, sin, rows, heads, kv_heads, head_dim, rotary)
  void check() const { expect_packed(name, *this); }

  template <class Op>
  static void expect_packed(const char* name, const Op& op) {
    const int64_t wide = op.rows * op.heads * op.head_dim, narrow = op.rows * op.kv_heads * op.head_dim;
    expect(op.rotary % 2 == 0 && op.rotary <= op.head_dim, name, "rotary must be even and at most head_dim");
    expect_numel(name, "q", op.q, wide);
    expect_numel(name, "k", op.k, narrow);
    expect_numel(name, "v", op.v, narrow);
    expect_numel(name, "qkv", op.qkv, wide + 2 * narrow);
    expect_numel(name, "cos", op.cos, op.rows * op.rotary / 2);
    expect_numel(name, "sin", op.sin, op.rows * op.rotary / 2);
    expect_floating(name, "qkv", op.qkv);
    for (const View* part : {&op.q, &op.k, &op.v}) expect_dtype(name, "part", *part, op.qkv.dtype);
    for (const View* table : {&op.cos, &op.sin}) expect_dtype(name, "table", *table, DType::Float32);
  }
};

// The gradient of SplitRope: queries and keys are turned back.
struct MergeRope {
  static constexpr const char* name = "merge_rope";
  View qkv;       // (rows, heads + 2 kv_heads, head_dim)
  View q;         // (rows, heads, head_dim)
  View k, v;      // (rows, kv_heads, head_dim)
  View cos, sin;  // (rows, rotary / 2) float32
  int64_t rows, heads, kv_heads, head_dim, rotary;
  RZ_OPERANDS(qkv, q, k, v, cos, sin, rows, heads, kv_heads, head_dim, rotary)
  void check() const { SplitRope::expect_packed(name, *this); }
};

namespace cpu {
void run(const RopeTable&);
void run(const Rope&);
void run(const SplitRope&);
void run(const MergeRope&);
}  // namespace cpu

namespace cuda {
void run(const RopeTable&, CudaStream&);
void run(const Rope&, CudaStream&);
void run(const SplitRope&, CudaStream&);
void run(const MergeRope&, CudaStream&);
}  // namespace cuda
}  // namespace rz
