// Sums of the columns of a matrix, in the order of its rows: gradients of weights and biases that all rows share.
#pragma once
#include "cuda/stream.h"
#include "ops/op.h"

namespace rz::cuda {

// out[c] (+)= Σ parts[r][c]; parts (rows, columns).
void write_column_sums(const View& out, const float* parts, int64_t rows, int64_t columns, bool accumulate, CudaStream& stream);

// The same of a tall matrix of any floating dtype, such as the gradient of a bias.
void add_up_columns(const View& out, const View& x, int64_t rows, int64_t columns, bool accumulate, CudaStream& stream);

}  // namespace rz::cuda
