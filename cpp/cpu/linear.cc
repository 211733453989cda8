// Linear and its two gradients: three GEMMs by oneDNN, and the column sums of the bias.
#include "ops/linear.h"

#include <cstring>

#include "cpu/matmul.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"
#include "cpu/simd.h"

namespace rz::cpu {

// A GEMM adds to what is where it writes. Returns whether there is something.
static bool begin_with(const View& to, const View& what) {
  if (what && what.data != to.data) std::memcpy(to.data, what.data, static_cast<size_t>(to.numel * size_of(to.dtype)));
  return static_cast<bool>(what);
}

void run(const LinearForward& op) {
  const int64_t in = op.in_features, out = op.out_features;
  gemm(op.rows, out, in, row_major(op.x, in), row_major(op.w, in).transposed(), row_major(op.y, out), op.b, begin_with(op.y, op.residual));
}

void run(const LinearBackwardInput& op) {
  const int64_t in = op.in_features, out = op.out_features;
  gemm(op.rows, in, out, row_major(op.dy, out), row_major(op.w, in), row_major(op.dx, in), View{}, begin_with(op.dx, op.earlier));
}

static void bias_gradient(const LinearBackwardWeight& op) {
  const int64_t out = op.out_features;
  Scratch scratch(out * 8);
  float *sums = scratch.as(), *old = sums + out;
  std::fill(sums, sums + out, 0.0f);
  parallel_for(out, 128, [&](int64_t begin, int64_t end) {
    simd().column_sums[index_of(op.dy.dtype)](sums + begin, at(op.dy, begin), out, op.rows, end - begin);
  });
  if (op.accumulate) {
    simd().to_f32[index_of(op.db.dtype)](old, op.db.data, out);
    simd().add[0](sums, sums, old, out);
  }
  simd().from_f32[index_of(op.db.dtype)](op.db.data, sums, out);
}

void run(const LinearBackwardWeight& op) {
  const int64_t in = op.in_features, out = op.out_features;
  gemm(out, in, op.rows, row_major(op.dy, out).transposed(), row_major(op.x, in), row_major(op.dw, in), View{},
       op.accumulate);
  if (op.db) bias_gradient(op);
}

void run(const QuantizedLinearForward& op) {
  const int64_t in = op.in_features, out = op.out_features;
  const QuantizedMatrix w(op.w, op.scheme, op.lines, op.piece, out, in);
  gemm(op.rows, out, in, row_major(op.x, in), w, true, row_major(op.y, out), op.b, begin_with(op.y, op.residual));
}

void run(const QuantizedLinearBackwardInput& op) {
  const int64_t in = op.in_features, out = op.out_features;
  const QuantizedMatrix w(op.w, op.scheme, op.lines, op.piece, out, in);
  gemm(op.rows, in, out, row_major(op.dy, out), w, false, row_major(op.dx, in), View{}, begin_with(op.dx, op.earlier));
}

}  // namespace rz::cpu
