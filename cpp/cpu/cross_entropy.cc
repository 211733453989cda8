// Cross entropy, alone and fused with the head. The fused form never holds more than one chunk of float32 logits, and
// computes only the rows that have a label.
#include "ops/cross_entropy.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "cpu/matmul.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"
#include "cpu/simd.h"

namespace rz::cpu {

static std::vector<int64_t> labelled_rows(const char* op, const int64_t* labels, int64_t rows, int64_t vocab) {
  std::vector<int64_t> kept;
  kept.reserve(static_cast<size_t>(rows));
  for (int64_t r = 0; r < rows; ++r) {
    if (labels[r] >= vocab)
      fail("ERR_ARGUMENT", "[", op, "] labels[", r, "] is ", labels[r], " but the vocabulary has ", vocab);
    if (labels[r] >= 0) kept.push_back(r);
  }
  return kept;
}

// A chunk of logits is about 8 MiB. Every chunk passes over all of dw, so with a large vocabulary it is dim / 4 rows (a
// quarter of w in float32), 64 to 256.
int64_t loss_chunk_rows(int64_t vocab, int64_t dim, int64_t rows) {
  return std::min(rows, std::max((int64_t{8} << 20) / (4 * vocab), std::clamp<int64_t>(dim / 4, 64, 256)) / 16 * 16);
}

void run(const LinearCrossEntropy& op) {
  auto labels = op.labels.as<int64_t>();
  const std::vector<int64_t> kept = labelled_rows(op.name, labels, op.rows, op.vocab);
  const auto count = static_cast<int64_t>(kept.size());
  const bool gathered = count < op.rows, gradients = op.dx || op.dw;
  const double denominator = op.denominator != 0 ? op.denominator : static_cast<double>(count);
  const DType type = op.x.dtype;
  const int64_t size = size_of(type), row_bytes = op.dim * size;

  if (op.dx && gathered) std::memset(op.dx.data, 0, static_cast<size_t>(op.rows * op.dim * size_of(op.dx.dtype)));
  if (op.dw && count == 0 && !op.accumulate)
    std::memset(op.dw.data, 0, static_cast<size_t>(op.vocab * op.dim * size_of(op.dw.dtype)));

  const int64_t chunk = loss_chunk_rows(op.vocab, op.dim, count);
  const bool separate = gradients && type != DType::Float32;  // float32 gradients overwrite the logits
  Scratch logits(chunk * op.vocab * 4), d_logits(separate ? chunk * op.vocab * size : 0);
  Scratch x_rows(gathered ? chunk * row_bytes : 0), dx_rows(gathered && op.dx ? chunk * row_bytes : 0);
  std::vector<double> losses(static_cast<size_t>(chunk));
  const auto softmax = simd().cross_entropy_row[index_of(type)];
  double loss = 0;
  for (int64_t first = 0; first < count; first += chunk) {
    const int64_t rows = std::min(chunk, count - first);
    const int64_t* index = kept.data() + first;
    char* x = at(op.x, first * op.dim);
    if (gathered) {
      x = x_rows.as<char>();
      for (int64_t r = 0; r < rows; ++r) std::memcpy(x + r * row_bytes, at(op.x, index[r] * op.dim), row_bytes);
    }
    const Matrix x_matrix = {x, type, op.dim, 1}, w = row_major(op.w, op.dim);
    const Matrix logits_matrix = {logits.as<void>(), DType::Float32, op.vocab, 1};
    gemm(rows, op.vocab, op.dim, x_matrix, w.transposed(), logits_matrix, View{}, false);

    char* d = separate ? d_logits.as<char>() : logits.as<char>();
    parallel_for(rows, 1, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r)
        losses[static_cast<size_t>(r)] =
            softmax(gradients ? d + r * op.vocab * size : nullptr, logits.as() + r * op.vocab, op.vocab,
                    labels[index[r]], static_cast<float>(1.0 / denominator));
    });
    for (int64_t r = 0; r < rows; ++r) loss += losses[static_cast<size_t>(r)];

    const Matrix d_matrix = {d, type, op.vocab, 1};
    if (op.dw)
      gemm(op.vocab, op.dim, rows, d_matrix.transposed(), x_matrix, row_major(op.dw, op.dim), View{},
           op.accumulate || first > 0);
    if (op.dx) {
      void* dx = gathered ? dx_rows.as<void>() : at(op.dx, first * op.dim);
      gemm(rows, op.dim, op.vocab, d_matrix, w, {dx, type, op.dim, 1}, View{}, false);
      if (gathered)
        for (int64_t r = 0; r < rows; ++r)
          std::memcpy(at(op.dx, index[r] * op.dim), dx_rows.as<char>() + r * row_bytes, row_bytes);
    }
  }
  *op.loss.as<float>() = static_cast<float>(loss / denominator);
}

void run(const CrossEntropy& op) {
  auto labels = op.labels.as<int64_t>();
  const auto count = static_cast<int64_t>(labelled_rows(op.name, labels, op.rows, op.vocab).size());
  const double denominator = op.denominator != 0 ? op.denominator : static_cast<double>(count);
  std::vector<double> losses(static_cast<size_t>(op.rows));
  parallel_for(op.rows, 1, [&](int64_t begin, int64_t end) {
    Scratch row(op.vocab * 4);
    for (int64_t r = begin; r < end; ++r) {
      float* d = op.d_logits ? op.d_logits.as<float>() + r * op.vocab : nullptr;
      if (labels[r] < 0) {
        if (d) std::fill(d, d + op.vocab, 0.0f);
        continue;
      }
      std::memcpy(row.as(), op.logits.as<float>() + r * op.vocab, static_cast<size_t>(op.vocab * 4));
      losses[static_cast<size_t>(r)] =
          simd().cross_entropy_row[0](d, row.as(), op.vocab, labels[r], static_cast<float>(1.0 / denominator));
    }
  });
  double loss = 0;
  for (double part : losses) loss += part;
  *op.loss.as<float>() = static_cast<float>(loss / denominator);
}

void run(const VocabStats& op) {
  auto labels = op.labels.as<int64_t>();
  parallel_for(op.rows, 1, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const float* row = op.logits.as<float>() + r * op.vocab;
      float* stats = op.stats.as<float>() + r * 3;
      const int64_t label = labels[r] - op.first;
      simd().softmax_stats_row(stats, row, labels[r] < 0 ? 0 : op.valid);
      stats[2] = label >= 0 && label < op.valid ? row[label] : 0.0f;
    }
  });
}

namespace {

struct RowStats {
  float top = -std::numeric_limits<float>::infinity();
  double sum = 0, target = 0;
};

RowStats combine(const VocabCrossEntropy& op, int64_t row) {
  RowStats all;
  auto part = [&](int64_t rank) { return op.stats.as<float>() + (rank * op.rows + row) * 3; };
  for (int64_t rank = 0; rank < op.ranks; ++rank) all.top = std::max(all.top, part(rank)[0]);
  const double top = all.top;
  for (int64_t rank = 0; rank < op.ranks; ++rank) {
    const double part_top = part(rank)[0], part_sum = part(rank)[1];
    if (part_sum != 0) all.sum += part_sum * std::exp(part_top - top);
    all.target += part(rank)[2];
  }
  return all;
}

// label: the column of it here, if it is among the valid ones.
void gradient_row(const VocabCrossEntropy& op, int64_t r, int64_t label, const RowStats& stats, float scale) {
  const float* row = op.logits.as<float>() + r * op.vocab;
  char* d = at(op.d_logits, r * op.vocab);
  const int type = index_of(op.d_logits.dtype);
  const auto factor = static_cast<float>(scale / stats.sum);
  const bool here = label >= 0 && label < op.valid;
  const float target = here ? row[label] : 0.0f;  // read first: d may be the row
  simd().softmax_gradient_row[type](d, row, op.valid, stats.top, factor);
  if (!here) return;
  const float hot = std::exp(target - stats.top) * factor - scale;
  simd().from_f32[type](d + label * size_of(op.d_logits.dtype), &hot, 1);
}

void zero_columns(const VocabCrossEntropy& op, int64_t r, int64_t from) {
  std::memset(at(op.d_logits, r * op.vocab + from), 0,
              static_cast<size_t>((op.vocab - from) * size_of(op.d_logits.dtype)));
}

}  // namespace

void run(const VocabCrossEntropy& op) {
  auto all_labels = op.labels.as<int64_t>(), labels = all_labels + op.from;
  const auto count = std::count_if(all_labels, all_labels + op.labels.numel, [](int64_t label) { return label >= 0; });
  const double denominator = op.denominator != 0 ? op.denominator : static_cast<double>(count);
  const auto scale = static_cast<float>(1.0 / denominator);
  std::vector<double> losses(static_cast<size_t>(op.rows));
  parallel_for(op.rows, 1, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const bool labelled = labels[r] >= 0;
      if (op.d_logits) zero_columns(op, r, labelled ? op.valid : 0);
      if (!labelled) continue;
      const RowStats stats = combine(op, r);
      losses[static_cast<size_t>(r)] = std::log(stats.sum) - (stats.target - stats.top);
      if (op.d_logits) gradient_row(op, r, labels[r] - op.first, stats, scale);
    }
  });
  double loss = 0;
  for (double part : losses) loss += part;
  float* to = op.loss.as<float>();
  *to = static_cast<float>((op.accumulate ? static_cast<double>(*to) : 0.0) + loss / denominator);
}

}  // namespace rz::cpu
