// GEMMs of groups of rows, each with a matrix of its own, in one launch: where the groups lie is known on the device only.
// Groups are pairs of a mixture of experts (cpp/ops/moe.h): group e is rows offsets[e] … offsets[e + 1].
#pragma once
#include <vector>

#include "cuda/stream.h"
#include "ops/op.h"

namespace rz::cuda {

struct Groups {
  const int32_t* offsets;  // (count + 1)
  int64_t count, rows;     // groups, and rows of all of them
};

// A row-major matrix with a row for each pair: as it is, or row order[i] / top_k of `view` where `order` is given.
struct PairRows {
  const View& view;
  const int32_t* order = nullptr;
  int64_t top_k = 1;
};

// c (rows, n) (+)= a (rows, k) wₑ for each group's rows, or a wₑᵀ: w is (k, n), or (n, k) when transposed. c: float32, or, when
// transposed, the dtype of a.
void grouped_matmul(const char* op, const Groups& groups, int64_t n, int64_t k, PairRows a, const std::vector<View>& w, bool transposed,
                    const View& c, bool accumulate, CudaStream& stream);

// dw of each group (m, n) (+)= aᵀ b over its rows; a (rows, m), b (rows, n). Groups without rows get zeros, or keep what they have;
// matrices that are absent are not made. accumulate[first_flag + e]: of group e.
void grouped_matmul_over_rows(const char* op, const Groups& groups, int64_t m, int64_t n, PairRows a, PairRows b,
                              const std::vector<OptionalView>& dw, const std::vector<bool>& accumulate, size_t first_flag, CudaStream& stream);

}  // namespace rz::cuda
