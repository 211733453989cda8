// Softmax cross entropy over rows with label ≥ 0 (−100 is ignored); the loss is Σ −log p[label] / denominator.
// Labels are already shifted: row n is judged against labels[n].
#pragma once
#include <algorithm>

#include "ops/op.h"

namespace rz {

// Head and loss in one: logits = x wᵀ exist only as one chunk of rows, in float32 or, on a device, in 16 bits (LossScratch). dx and dw are written in the same pass
// (the gradient of the loss itself; backward scales them when its incoming gradient is not 1).
struct LinearCrossEntropy {
  static constexpr const char* name = "linear_cross_entropy";
  View loss;        // (1) float32
  OptionalView dx;  // (rows, dim)
  OptionalView dw;  // (vocab, dim) float32 or the compute dtype
  View x;           // (rows, dim)
  View w;           // (vocab, dim)
  View labels;      // (rows) int64, each −100 or 0 … vocab−1
  int64_t rows, dim, vocab;
  double denominator;  // 0: the number of rows with a label (0 such rows give NaN, as in PyTorch)
  bool accumulate;     // dw only
  RZ_OPERANDS(loss, dx, dw, x, w, labels, rows, dim, vocab, denominator, accumulate)
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
  View loss;              // (1) float32
  OptionalView d_logits;  // (rows, vocab) float32
  View logits;            // (rows, vocab) float32
  View labels;            // (rows) int64
  int64_t rows, vocab;
  double denominator;  // 0: the number of rows with a label
  RZ_OPERANDS(loss, d_logits, logits, labels, rows, vocab, denominator)
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

// The vocabulary split over ranks: each holds the columns first … first + valid of the logits (columns beyond `valid` are
// padding). Every rank makes its statistics, the ranks gather them, and each goes on from all of them alone.

struct VocabStats {
  static constexpr const char* name = "vocab_stats";
  View stats;   // (rows, 3) float32: maximum, Σ exp(logit − maximum), logit of the label or 0 where another rank has it;
                // (−∞, 0, 0) without a valid column, or without a label
  View logits;  // (rows, vocab) float32
  View labels;  // (rows) int64, of the whole vocabulary
  int64_t rows, vocab, first, valid;
  RZ_OPERANDS(stats, logits, labels, rows, vocab, first, valid)
  void check() const {
    expect(valid >= 0 && valid <= vocab, name, "valid must be within the columns");
    expect_numel(name, "stats", stats, rows * 3);
    expect_dtype(name, "stats", stats, DType::Float32);
    expect_numel(name, "logits", logits, rows * vocab);
    expect_dtype(name, "logits", logits, DType::Float32);
    expect_numel(name, "labels", labels, rows);
    expect_dtype(name, "labels", labels, DType::Int64);
  }
};

// Rows from … from + rows of a batch. The statistics are combined in the order of the ranks, in float64: the loss has the
// same bits on all of them.
struct VocabCrossEntropy {
  static constexpr const char* name = "vocab_cross_entropy";
  View loss;              // (1) float32
  OptionalView d_logits;  // (rows, vocab) float32 or 16 bits; may be `logits` (float32). Padding columns get 0
  View logits;            // (rows, vocab) float32
  View stats;             // (ranks, rows, 3) float32
  View labels;            // (all rows of the batch) int64
  int64_t ranks, from, rows, vocab, first, valid;
  double denominator;  // 0: the number of labels in the batch
  bool accumulate;     // the loss only
  RZ_OPERANDS(loss, d_logits, logits, stats, labels, ranks, from, rows, vocab, first, valid, denominator, accumulate)
  void check() const {
    expect(valid >= 0 && valid <= vocab, name, "valid must be within the columns");
    expect_numel(name, "loss", loss, 1);
    expect_dtype(name, "loss", loss, DType::Float32);
    expect_numel(name, "logits", logits, rows * vocab);
    expect_dtype(name, "logits", logits, DType::Float32);
    expect_numel(name, "stats", stats, ranks * rows * 3);
    expect_dtype(name, "stats", stats, DType::Float32);
    expect_dtype(name, "labels", labels, DType::Int64);
    expect(from >= 0 && rows >= 0 && from + rows <= labels.numel, name, "the rows must be within the labels");
    if (!d_logits) return;
    expect_numel(name, "d_logits", d_logits, rows * vocab);
    expect_floating(name, "d_logits", d_logits);
    expect(d_logits.data != logits.data || d_logits.dtype == DType::Float32, name, "d_logits in place must be float32");
  }
};

namespace cpu {
// Rows of logits that exist at a time, of `rows` that have labels.
int64_t loss_chunk_rows(int64_t vocab, int64_t dim, int64_t rows);
void run(const LinearCrossEntropy&);
void run(const CrossEntropy&);
void run(const VocabStats&);
void run(const VocabCrossEntropy&);
}  // namespace cpu

namespace cuda {
// Every chunk passes over all of dw, which takes as long as its GEMM where a chunk is about 900 rows (H100, float32 dw). So
// it is 1024 rows, or more (up to 4096) while logits of the given dtype stay below 512 MiB, or 1 GiB in 16 bits, which their
// gradients overwrite.
inline int64_t loss_chunk_rows(int64_t vocab, int64_t rows, DType logits = DType::Float32) {
  const int64_t most = logits == DType::Float32 ? int64_t{512} << 20 : int64_t{1} << 30;
  const int64_t fitting = most / (size_of(logits) * vocab) / 128 * 128;
  return std::min(rows, std::clamp<int64_t>(fitting, 1024, 4096));
}

// Memory of the op's own: sums, and the logits and their gradients of one chunk. In bytes.
struct LossScratch {
  DType type;     // of the logits: that of x if `narrow`
  int64_t chunk;  // rows
  size_t sums, logits, d;
  LossScratch(const LinearCrossEntropy& op, bool narrow)
      : type(narrow ? op.x.dtype : DType::Float32), chunk(loss_chunk_rows(op.vocab, op.rows, type)),
        sums(static_cast<size_t>(op.rows + 1) * sizeof(double)), logits(static_cast<size_t>(chunk * op.vocab * size_of(type))) {
    const bool separate = (op.dx || op.dw) && op.x.dtype != type;  // gradients of the logits' dtype overwrite them
    d = separate ? static_cast<size_t>(chunk * op.vocab * size_of(op.x.dtype)) : 0;
  }
};

void run(const LinearCrossEntropy&, CudaStream&);
void run(const CrossEntropy&, CudaStream&);
void run(const VocabStats&, CudaStream&);
void run(const VocabCrossEntropy&, CudaStream&);
}  // namespace cuda
}  // namespace rz
