// The online softmax of attention on accumulators of mma.h: of each row, lanes of a quad have the columns.
#pragma once
#include "cuda/attention.h"
#include "cuda/attention_mma.h"
#include "cuda/mma.h"

namespace rz::cuda {

__device__ __forceinline__ float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(kFullMask, x, 1));
  return fmaxf(x, __shfl_xor_sync(kFullMask, x, 2));
}
__device__ __forceinline__ float quad_sum(float x) {
  x += __shfl_xor_sync(kFullMask, x, 1);
  return x + __shfl_xor_sync(kFullMask, x, 2);
}

// The base of a row moves, and what was summed before shrinks to it, only when a score exceeds it so far that probabilities
// could grow large.
constexpr float kBaseLag = 8.0f;  // in base 2

// What probabilities of a lane's rows are relative to, in base 2, and their sum so far over the lane's columns.
template <int M>
struct OnlineSoftmax {
  float base[M][2], sum[M][2], shrink[M][2];

  __device__ __forceinline__ OnlineSoftmax() {
#pragma unroll
    for (int m = 0; m < M; ++m) base[m][0] = base[m][1] = -INFINITY, sum[m][0] = sum[m][1] = 0.0f;
  }

  // Scores become probabilities. Whether a base of the lane's rows moved: then what was summed before must shrink, in all lanes.
  template <int N>
  __device__ __forceinline__ bool step(float (&s)[M][N][4], float scale) {
    bool moved = false;
#pragma unroll
    for (int m = 0; m < M; ++m) {
      float best[2];  // by two chains each, since powers wait for them
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float even = -INFINITY, odd = -INFINITY;
#pragma unroll
        for (int n = 0; n < N; ++n) even = fmaxf(even, s[m][n][half * 2]), odd = fmaxf(odd, s[m][n][half * 2 + 1]);
        best[half] = fmaxf(even, odd);
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) best[half] = quad_max(best[half]) * scale;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        shrink[m][half] = 1.0f;
        if (best[half] > base[m][half] + kBaseLag) {
          shrink[m][half] = exp2_approximate(base[m][half] - best[half]);
          base[m][half] = best[half];
          moved = true;
        }
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float from = base[m][half] == -INFINITY ? 0.0f : base[m][half];
        float even = 0.0f, odd = 0.0f;  // of this lane's columns
#pragma unroll
        for (int n = 0; n < N; ++n) {
          even += s[m][n][half * 2] = exp2_approximate(s[m][n][half * 2] * scale - from);
          odd += s[m][n][half * 2 + 1] = exp2_approximate(s[m][n][half * 2 + 1] * scale - from);
        }
        sum[m][half] = sum[m][half] * shrink[m][half] + (even + odd);
      }
    }
    return moved;
  }

  template <int D>
  __device__ __forceinline__ void shrink_rows(float (&o)[M][D][4]) const {
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
      for (int d = 0; d < D; ++d)
#pragma unroll
        for (int e = 0; e < 4; ++e) o[m][d][e] *= shrink[m][e / 2];
  }

  // Divides the rows by the sums of their probabilities and writes the logarithms of these, of the warp's first `rows` rows.
  template <int D>
  __device__ __forceinline__ void finish(float (&o)[M][D][4], float* lse, int rows) const {
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float total = quad_sum(sum[m][half]), factor = total == 0.0f ? 0.0f : 1.0f / total;
#pragma unroll
        for (int d = 0; d < D; ++d) o[m][d][half * 2] *= factor, o[m][d][half * 2 + 1] *= factor;
        const int row = lane_row(m, half);
        if (threadIdx.x % 4 == 0 && row < rows) lse[row] = base[m][half] * kLn2 + logf(total);
      }
  }
};

}  // namespace rz::cuda
