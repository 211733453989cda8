// Linear and its two gradients: three products by oneDNN, and the column sums of the bias.
#include "ops/linear.h"

#include "cpu/matmul.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"
#include "cpu/simd.h"

namespace rz::cpu {

void run(const LinearForward& op) {
  gemm(op.rows, op.out, op.in, row_major(op.x, op.in), row_major(op.w, op.in).transposed(), row_major(op.y, op.out),
       op.b, false);
}

void run(const LinearBackwardInput& op) {
  gemm(op.rows, op.in, op.out, row_major(op.dy, op.out), row_major(op.w, op.in), row_major(op.dx, op.in), View{},
       op.accumulate);
}

static void bias_gradient(const LinearBackwardWeight& op) {
  Scratch scratch(op.out * 8);
  float *sums = scratch.as(), *old = sums + op.out;
  std::fill(sums, sums + op.out, 0.0f);
  parallel_for(op.out, 128, [&](int64_t begin, int64_t end) {
    simd().column_sums[index_of(op.dy.dtype)](sums + begin, at(op.dy, begin), op.out, op.rows, end - begin);
  });
  if (op.accumulate) {
    simd().to_f32[index_of(op.db.dtype)](old, op.db.data, op.out);
    simd().add[0](sums, sums, old, op.out);
  }
  simd().from_f32[index_of(op.db.dtype)](op.db.data, sums, op.out);
}

void run(const LinearBackwardWeight& op) {
  gemm(op.out, op.in, op.rows, row_major(op.dy, op.out).transposed(), row_major(op.x, op.in), row_major(op.dw, op.in),
       View{}, op.accumulate);
  if (op.db) bias_gradient(op);
}

}  // namespace rz::cpu
