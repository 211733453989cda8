// The fused query, key and value projection of GPT-NeoX, whose rows hold [q | k | v] for each head, and its three parts.
#pragma once
#include "ops/op.h"

namespace rz {

struct SplitQkv {
  static constexpr const char* name = "split_qkv";
  View q, k, v;  // (rows, heads, head_dim)
  View qkv;      // (rows, heads, 3, head_dim)
  int64_t rows, heads, head_dim;
  RZ_OPERANDS(q, k, v, qkv, rows, heads, head_dim)
  void check() const {
    expect_numel(name, "qkv", qkv, rows * heads * 3 * head_dim);
    for (const View* part : {&q, &k, &v}) {
      expect_numel(name, "part", *part, rows * heads * head_dim);
      expect_dtype(name, "part", *part, qkv.dtype);
    }
  }
};

struct MergeQkv {
  static constexpr const char* name = "merge_qkv";
  View qkv;      // (rows, heads, 3, head_dim)
  View q, k, v;  // (rows, heads, head_dim)
  int64_t rows, heads, head_dim;
  RZ_OPERANDS(qkv, q, k, v, rows, heads, head_dim)
  void check() const {
    expect_numel(name, "qkv", qkv, rows * heads * 3 * head_dim);
    for (const View* part : {&q, &k, &v}) {
      expect_numel(name, "part", *part, rows * heads * head_dim);
      expect_dtype(name, "part", *part, qkv.dtype);
    }
  }
};

namespace cpu {
void run(const SplitQkv&);
void run(const MergeQkv&);
}  // namespace cpu

namespace cuda {
void run(const SplitQkv&, CudaStream&);
void run(const MergeQkv&, CudaStream&);
}  // namespace cuda
}  // namespace rz
