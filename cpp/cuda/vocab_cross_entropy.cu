// Cross entropy over a vocabulary that is split over ranks: the statistics of this rank's columns, and loss and gradient from
// those of all ranks, which are combined in their order in float64.
#include "cuda/softmax_row.h"
#include "ops/cross_entropy.h"

namespace rz::cuda {

template <bool kAligned>
static __global__ void vocab_stats(float* stats, const float* logits, const int64_t* labels, int64_t vocab, int64_t first, int64_t valid) {
  const int64_t r = blockIdx.x, label = labels[r] - first;
  const float* row = logits + r * vocab;
  const SoftmaxStats all = softmax_stats<kAligned>(row, labels[r] < 0 ? 0 : valid);
  if (threadIdx.x != 0) return;
  stats[r * 3] = all.top;
  stats[r * 3 + 1] = all.sum;
  stats[r * 3 + 2] = label >= 0 && label < valid ? row[label] : 0.0f;
}

void run(const VocabStats& op, CudaStream& stream) {
  const bool aligned = op.vocab % 4 == 0 && is_aligned(op.logits.data);
  launch(aligned ? vocab_stats<true> : vocab_stats<false>, static_cast<unsigned>(op.rows), kRowThreads, 0, stream, op.stats.as<float>(),
         op.logits.as<float>(), op.labels.as<int64_t>(), op.vocab, op.first, op.valid);
}

struct WholeRow {
  float top = -INFINITY;
  double sum = 0, target = 0;
};

static __device__ WholeRow combine(const float* stats, int64_t ranks, int64_t rows, int64_t row) {
  WholeRow all;
  for (int64_t rank = 0; rank < ranks; ++rank) all.top = fmaxf(all.top, stats[(rank * rows + row) * 3]);
  for (int64_t rank = 0; rank < ranks; ++rank) {
    const float* part = stats + (rank * rows + row) * 3;
    if (part[1] != 0) all.sum += static_cast<double>(part[1]) * exp(static_cast<double>(part[0]) - static_cast<double>(all.top));
    all.target += static_cast<double>(part[2]);
  }
  return all;
}

// Block r does row r; labels: of these rows. d may be null, or the logits themselves.
template <class D, bool kAligned>
static __global__ void vocab_cross_entropy_rows(D* d, double* losses, const float* logits, const float* stats, const int64_t* labels, int64_t ranks,
                                                int64_t rows, int64_t vocab, int64_t first, int64_t valid, Denominator denominator) {
  RZ_SHARED(float, shared, 2);
  const int64_t r = blockIdx.x, label = labels[r];
  const float* row = logits + r * vocab;
  D* d_row = d + r * vocab;
  const int64_t columns = label < 0 ? 0 : valid;  // those with a gradient
  const float scale = static_cast<float>(1.0 / denominator.value());
  if (threadIdx.x == 0) {
    WholeRow all;
    if (label >= 0) all = combine(stats, ranks, rows, r);
    losses[r] = label < 0 ? 0.0 : log(all.sum) - (all.target - static_cast<double>(all.top));
    shared[0] = all.top;
    shared[1] = static_cast<float>(static_cast<double>(scale) / all.sum);
  }
  __syncthreads();
  const float top = shared[0], factor = shared[1];
  if (!d) return;
  for (int64_t tile = 0; tile < vocab; tile += kRowTile) {
    float x[kGroup];
    load_tile<kAligned>(x, row, tile, columns);
#pragma unroll
    for (int j = 0; j < kGroup; ++j) {
      const int64_t c = column_of<kAligned>(tile, j);
      x[j] = c < columns ? expf(x[j] - top) * factor - (c == label - first ? scale : 0.0f) : 0.0f;
    }
    store_tile<kAligned>(d_row, x, tile, vocab);
  }
}

void run(const VocabCrossEntropy& op, CudaStream& stream) {
  auto scratch = stream.scratch(static_cast<size_t>(op.rows + 1) * sizeof(double));
  auto* losses = static_cast<double*>(scratch->data());
  const Denominator denominator = denominator_of(op.denominator, op.labels, losses + op.rows, stream);
  with_floating(op.d_logits.dtype, [&](auto t) {
    using D = decltype(t);
    const bool aligned =
        op.vocab % 4 == 0 && op.vocab * static_cast<int64_t>(sizeof(D)) % 16 == 0 && is_aligned(op.logits.data) && is_aligned(op.d_logits.data);
    launch(aligned ? vocab_cross_entropy_rows<D, true> : vocab_cross_entropy_rows<D, false>, static_cast<unsigned>(op.rows), kRowThreads, 0, stream,
           op.d_logits.as<D>(), losses, op.logits.as<float>(), op.stats.as<float>(), op.labels.as<int64_t>() + op.from, op.ranks, op.rows, op.vocab,
           op.first, op.valid, denominator);
  });
  write_loss(op.loss, losses, op.rows, denominator, op.accumulate, stream);
}

}  // namespace rz::cuda
