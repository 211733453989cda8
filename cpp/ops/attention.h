// Causal attention over packed sequences with grouped heads, online softmax in float32, never a T×T matrix.
// Sequence s owns query rows cu_q[s] … cu_q[s+1] and key rows cu_k[s] … cu_k[s+1]; the last query of a sequence sees its
// last key (with fewer queries than keys, as in cached generation, query i sits at key position i + keys - queries).
// Query head h reads key/value head h / (heads / kv_heads). window > 0: a query sees only its last `window` keys.
#pragma once
#include "ops/op.h"

namespace rz {

struct AttentionForward {
  static constexpr const char* name = "attention_forward";
  View o;           // (q_rows, heads, head_dim)
  View lse;         // (heads, q_rows) float32: log-sum-exp of the scaled scores, kept for backward
  View q;           // (q_rows, heads, head_dim)
  View k, v;        // (k_rows, kv_heads, head_dim)
  View cu_q, cu_k;  // (sequences + 1) int32
  int64_t q_rows, k_rows, sequences, heads, kv_heads, head_dim, window;
  float scale;
  RZ_OPERANDS(o, lse, q, k, v, cu_q, cu_k, q_rows, k_rows, sequences, heads, kv_heads, head_dim, window, scale)
  void check() const {
    expect(kv_heads > 0 && heads % kv_heads == 0, name, "heads must be a multiple of kv_heads");
    expect_numel(name, "o", o, q_rows * heads * head_dim);
    expect_numel(name, "lse", lse, q_rows * heads);
    expect_numel(name, "q", q, q_rows * heads * head_dim);
    expect_numel(name, "k", k, k_rows * kv_heads * head_dim);
    expect_numel(name, "v", v, k_rows * kv_heads * head_dim);
    expect_numel(name, "cu_q", cu_q, sequences + 1);
    expect_numel(name, "cu_k", cu_k, sequences + 1);
    expect_dtype(name, "cu_q", cu_q, DType::Int32);
    expect_dtype(name, "cu_k", cu_k, DType::Int32);
    expect_dtype(name, "lse", lse, DType::Float32);
    expect_floating(name, "q", q);
    expect_dtype(name, "k", k, q.dtype);
    expect_dtype(name, "v", v, q.dtype);
    expect_dtype(name, "o", o, q.dtype);
  }
};

// Queries and keys of a sequence are the same rows here (cu serves both).
struct AttentionBackward {
  static constexpr const char* name = "attention_backward";
  View dq;      // (rows, heads, head_dim)
  View dk, dv;  // (rows, kv_heads, head_dim)
  View d_o, o;  // (rows, heads, head_dim)
  View q;       // (rows, heads, head_dim)
  View k, v;    // (rows, kv_heads, head_dim)
  View lse;     // (heads, rows) float32
  View cu;      // (sequences + 1) int32
  int64_t rows, sequences, heads, kv_heads, head_dim, window;
  float scale;
  RZ_OPERANDS(dq, dk, dv, d_o, o, q, k, v, lse, cu, rows, sequences, heads, kv_heads, head_dim, window, scale)
  void check() const {
    int64_t wide = rows * heads * head_dim, narrow = rows * kv_heads * head_dim;
    expect(kv_heads > 0 && heads % kv_heads == 0, name, "heads must be a multiple of kv_heads");
    expect_numel(name, "dq", dq, wide);
    expect_numel(name, "dk", dk, narrow);
    expect_numel(name, "dv", dv, narrow);
    expect_numel(name, "d_o", d_o, wide);
    expect_numel(name, "o", o, wide);
    expect_numel(name, "q", q, wide);
    expect_numel(name, "k", k, narrow);
    expect_numel(name, "v", v, narrow);
    expect_numel(name, "lse", lse, rows * heads);
    expect_numel(name, "cu", cu, sequences + 1);
    expect_dtype(name, "cu", cu, DType::Int32);
    expect_floating(name, "q", q);
    for (const View* t : {&dq, &dk, &dv, &d_o, &o, &k, &v}) expect_dtype(name, "operand", *t, q.dtype);
  }
};

namespace cpu {
void run(const AttentionForward&);
void run(const AttentionBackward&);
}  // namespace cpu

namespace cuda {
void run(const AttentionForward&, CudaStream&);
void run(const AttentionBackward&, CudaStream&);
}  // namespace cuda
}  // namespace rz
