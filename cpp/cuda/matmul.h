// GEMMs by cuBLASLt, which is column-major: a row-major (rows, columns) matrix is its transpose there.
#pragma once
#include "cuda/stream.h"
#include "ops/op.h"

namespace rz::cuda {

struct Operand {
  const View& view;
  bool transposed;  // as stored, row-major: a is (m, k), or (k, m) when transposed; b is (k, n), or (n, k)
};

// c (m, n) = a b + bias (n) + onto, the last two where they are given, summed in float32. `onto` has the shape and dtype of c and may
// be c. float32 operands are multiplied as float32 unless RANKZERO_TF32=1.
// c may be float32 for 16-bit operands. Errors: ERR_CUDA_UNAVAILABLE where cuBLASLt is missing, naming every place tried.
void matmul(const char* op, int64_t m, int64_t n, int64_t k, Operand a, Operand b, const View& c, const View& bias, const View& onto,
            CudaStream& stream);

}  // namespace rz::cuda
