// Cross entropy, alone and fused with the head. The fused form holds one chunk of logits: a GEMM, then one kernel for
// loss and gradient, then two GEMMs. Rows without a label are computed too, with a gradient of zero: how many have one is
// known on the device only. So is a label beyond the vocabulary, which makes the loss NaN here.
#include "ops/cross_entropy.h"

#include "cuda/matmul.h"
#include "cuda/softmax_row.h"

namespace rz::cuda {

// Block r does row r. d may be null, or the logits themselves.
template <class D, class L, bool kAligned>
static __global__ void cross_entropy_rows(D* d, double* losses, const L* logits, const int64_t* labels, int64_t vocab, Denominator denominator) {
  const int64_t r = blockIdx.x, label = labels[r];
  const L* row = logits + r * vocab;
  D* d_row = d + r * vocab;
  if (label < 0) {
    if (threadIdx.x == 0) losses[r] = 0;
    const float zeros[kGroup] = {};
    if (d)
      for (int64_t tile = 0; tile < vocab; tile += kRowTile) store_tile<kAligned>(d_row, zeros, tile, vocab);
    return;
  }
  const float target = label < vocab ? widen(row[label]) : NAN;
  const SoftmaxStats stats = softmax_stats<kAligned>(row, vocab);
  if (threadIdx.x == 0) losses[r] = log(static_cast<double>(stats.sum)) - (static_cast<double>(target) - static_cast<double>(stats.top));
  if (!d) return;
  const float scale = static_cast<float>(1.0 / denominator.value()), factor = scale / stats.sum;
  for (int64_t tile = 0; tile < vocab; tile += kRowTile) {
    float x[kGroup];
    load_tile<kAligned>(x, row, tile, vocab);
#pragma unroll
    for (int j = 0; j < kGroup; ++j) x[j] = expf(x[j] - stats.top) * factor - (column_of<kAligned>(tile, j) == label ? scale : 0.0f);
    store_tile<kAligned>(d_row, x, tile, vocab);
  }
}

// d: in the dtype D, null if absent.
template <class D, class L>
static void launch_rows(D* d, double* losses, const L* logits, const int64_t* labels, int64_t rows, int64_t vocab, Denominator denominator,
                        CudaStream& stream) {
  const auto starts = [&](int64_t width) { return vocab * width % 16 == 0; };
  const bool aligned = starts(sizeof(L)) && starts(sizeof(D)) && is_aligned(logits) && is_aligned(d);
  launch(aligned ? cross_entropy_rows<D, L, true> : cross_entropy_rows<D, L, false>, static_cast<unsigned>(rows), kRowThreads, 0, stream, d, losses,
         logits, labels, vocab, denominator);
}

void run(const CrossEntropy& op, CudaStream& stream) {
  auto scratch = stream.scratch(static_cast<size_t>(op.rows + 1) * sizeof(double));
  auto* losses = static_cast<double*>(scratch->data());
  const Denominator denominator = denominator_of(op.denominator, op.labels, losses + op.rows, stream);
  launch_rows(op.d_logits.as<float>(), losses, op.logits.as<float>(), op.labels.as<int64_t>(), op.rows, op.vocab, denominator, stream);
  write_loss(op.loss, losses, op.rows, denominator, false, stream);
}

static View rows_of(const View& v, int64_t first, int64_t rows, int64_t columns) {
  return {v.as<char>() + first * columns * size_of(v.dtype), v.dtype, rows * columns};
}

void run(const LinearCrossEntropy& op, CudaStream& stream) {
  const char* name = LinearCrossEntropy::name;
  const DType type = op.x.dtype;
  const int64_t vocab = op.vocab, dim = op.dim;
  const LossScratch scratch(op, stream.context().kernels.narrow_logits);
  auto sums = stream.scratch(scratch.sums);
  auto* losses = static_cast<double*>(sums->data());
  const Denominator denominator = denominator_of(op.denominator, op.labels, losses + op.rows, stream);
  if (op.rows == 0 && op.dw) matmul(name, vocab, dim, 0, {op.x, true}, {op.x, false}, op.dw, View{}, op.accumulate ? View(op.dw) : View{}, stream);

  const int64_t chunk = scratch.chunk;
  const bool gradients = op.dx || op.dw, separate = scratch.d > 0;
  std::shared_ptr<Storage> logits_memory, d_memory;
  if (chunk > 0) logits_memory = stream.scratch(scratch.logits);
  if (separate) d_memory = stream.scratch(scratch.d);
  for (int64_t first = 0; first < op.rows; first += chunk) {
    const int64_t rows = std::min(chunk, op.rows - first);
    const View x = rows_of(op.x, first, rows, dim), logits{logits_memory->data(), scratch.type, rows * vocab};
    const View d{separate ? d_memory->data() : gradients ? logits.data : nullptr, type, rows * vocab};
    matmul(name, rows, vocab, dim, {x, false}, {op.w, true}, logits, View{}, View{}, stream);
    with_floating(type, [&](auto t) {
      using T = decltype(t);
      auto launch_of = [&](auto l) {
        launch_rows(d.as<T>(), losses + first, logits.as<decltype(l)>(), op.labels.as<int64_t>() + first, rows, vocab, denominator, stream);
      };
      scratch.type == type ? launch_of(T{}) : launch_of(float{});
    });
    if (op.dw) matmul(name, vocab, dim, rows, {d, true}, {x, false}, op.dw, View{}, op.accumulate || first > 0 ? View(op.dw) : View{}, stream);
    if (op.dx) matmul(name, rows, dim, vocab, {d, false}, {op.w, false}, rows_of(op.dx, first, rows, dim), View{}, View{}, stream);
  }
  write_loss(op.loss, losses, op.rows, denominator, false, stream);
}

}  // namespace rz::cuda
