// Softmax cross entropy over rows with label ≥ 0 (−100 is ignored); the loss is Σ −log p[label] / denominator.
// Labels are already shifted: row n is judged against labels[n].
#pragma once
#include "ops/op.h"

namespace rz {

// Head and loss in one: logits = x wᵀ exist only as one float32 chunk of rows. dx and dw are written in the same pass
// (the gradient of the loss itself; backward scales them when its incoming gradient is not 1).
struct LinearCrossEntropy {
  static constexpr const char* name = "linear_cross_entropy";
  View loss;    // (1) float32
  View dx;      // (rows, dim), optional
  View dw;      // (vocab, dim) float32 or the compute dtype, optional
  View x;       // (rows, dim)
  View w;       // (vocab, dim)
  View labels;  // (rows) int64, each −100 or 0 … vocab−1
  int64_t rows, dim, vocab;
  double denominator;  // 0: the number of rows with a label (0 such rows give NaN, as in PyTorch)
  bool accumulate;     // dw only
  void check() const {
    expect_numel(name, "loss", loss, 1);
    expect_dtype(name, "loss", loss, DType::Float32);
    expect_numel(name, "x", x, rows * dim);
    expect_numel(name, "w", w, vocab * dim);
    expect_numel(name, "labels", labels, rows);
    expect_dtype(name, "labels", labels, DType::Int64);
    if (dx) expect_numel(name, "dx", dx, rows * dim);
    if (dw) expect_numel(name, "dw", dw, vocab * dim);
    expect_floating(name, "x", x);
    expect_dtype(name, "w", w, x.dtype);
  }
};

// The same from logits that exist already.
struct CrossEntropy {
  static constexpr const char* name = "cross_entropy";
  View loss;      // (1) float32
  View d_logits;  // (rows, vocab) float32, optional
  View logits;    // (rows, vocab) float32
  View labels;    // (rows) int64
  int64_t rows, vocab;
  double denominator;  // 0: the number of rows with a label
  void check() const {
    expect_numel(name, "loss", loss, 1);
    expect_dtype(name, "loss", loss, DType::Float32);
    expect_numel(name, "logits", logits, rows * vocab);
    expect_dtype(name, "logits", logits, DType::Float32);
    expect_numel(name, "labels", labels, rows);
    expect_dtype(name, "labels", labels, DType::Int64);
    if (d_logits) expect_numel(name, "d_logits", d_logits, rows * vocab);
  }
};

namespace cpu {
void run(const LinearCrossEntropy&);
void run(const CrossEntropy&);
}  // namespace cpu
}  // namespace rz
