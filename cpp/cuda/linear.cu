// Linear and its two gradients: three GEMMs, and the column sums of the bias.
#include "ops/linear.h"

#include "cuda/column_sums.h"
#include "cuda/matmul.h"

namespace rz::cuda {

void run(const LinearForward& op, CudaStream& stream) {
  matmul(LinearForward::name, op.rows, op.out_features, op.in_features, {op.x, false}, {op.w, true}, op.y, op.b, op.residual, stream);
}

void run(const LinearBackwardInput& op, CudaStream& stream) {
  matmul(LinearBackwardInput::name, op.rows, op.in_features, op.out_features, {op.dy, false}, {op.w, false}, op.dx, View{}, op.earlier, stream);
}

void run(const LinearBackwardWeight& op, CudaStream& stream) {
  matmul(LinearBackwardWeight::name, op.out_features, op.in_features, op.rows, {op.dy, true}, {op.x, false}, op.dw, View{}, op.accumulate ? View(op.dw) : View{}, stream);
  if (op.db) add_up_columns(op.db, op.dy, op.rows, op.out_features, op.accumulate, stream);
}

}  // namespace rz::cuda
