// Embedding: out[n] = table[ids[n] − first]. A table may be a part of the vocabulary, `vocab` rows of it from row `first`:
// ids of other parts give zero rows, and no gradient. That ids are within the vocabulary is checked on the host before anything is
// enqueued.
#pragma once
#include "ops/op.h"

namespace rz {

struct EmbeddingForward {
  static constexpr const char* name = "embedding_forward";
  View out;    // (rows, dim)
  View ids;    // (rows) int64
  View table;  // (vocab, dim)
  int64_t rows, vocab, dim, first;
  RZ_OPERANDS(out, ids, table, rows, vocab, dim, first)
  void check() const {
    expect_dtype(name, "ids", ids, DType::Int64);
    expect_numel(name, "ids", ids, rows);
    expect_numel(name, "out", out, rows * dim);
    expect_numel(name, "table", table, vocab * dim);
    expect_floating(name, "table", table);
    expect_dtype(name, "out", out, table.dtype);
  }
};

// d_table[ids[n] − first] += d_out[n], in row order (deterministic). Without `accumulate` d_table is zeroed first.
struct EmbeddingBackward {
  static constexpr const char* name = "embedding_backward";
  View d_table;  // (vocab, dim) float32 or the compute dtype
  View ids;      // (rows) int64
  View d_out;    // (rows, dim)
  int64_t rows, vocab, dim, first;
  bool accumulate;
  RZ_OPERANDS(d_table, ids, d_out, rows, vocab, dim, first, accumulate)
  void check() const {
    expect_dtype(name, "ids", ids, DType::Int64);
    expect_numel(name, "ids", ids, rows);
    expect_numel(name, "d_out", d_out, rows * dim);
    expect_numel(name, "d_table", d_table, vocab * dim);
    expect_floating(name, "d_table", d_table);
    expect_floating(name, "d_out", d_out);
  }
};

namespace cpu {
void run(const EmbeddingForward&);
void run(const EmbeddingBackward&);
}  // namespace cpu

namespace cuda {
void run(const EmbeddingForward&, CudaStream&);
void run(const EmbeddingBackward&, CudaStream&);
}  // namespace cuda
}  // namespace rz
