// Tiles of attention without tensor cores, for float32 and for what mma.h cannot take: everything is float in shared memory,
// and a block of 16 by 16 threads keeps results of kTile rows: thread (ty, tx) those of rows ty + 16 r and columns tx + 16 c.
#pragma once
#include "cuda/attention.h"

namespace rz::cuda::plain {

constexpr int kThreads = 256;

__device__ __forceinline__ int ty() { return static_cast<int>(threadIdx.x) / 16; }
__device__ __forceinline__ int tx() { return static_cast<int>(threadIdx.x) % 16; }

// Floats from row to row, odd so that a column of rows lies in different banks.
template <int kColumns>
constexpr int kStride = kColumns + 1;
template <int kRows, int kColumns>
constexpr int kTileFloats = kRows * kStride<kColumns>;

template <int kTile, int kDim, class T>
__device__ __forceinline__ void load_tile(float* tile, const T* from, int64_t stride, int rows, int dim) {
  for (int i = static_cast<int>(threadIdx.x); i < kTile * kDim; i += kThreads) {
    const int row = i / kDim, c = i % kDim;
    tile[row * kStride<kDim> + c] = row < rows && c < dim ? widen(from[row * stride + c]) : 0.0f;
  }
}

// s = a bᵀ
template <int kDim, int R>
__device__ __forceinline__ void scores(float (&s)[R][R], const float* a, const float* b, int dim) {
#pragma unroll
  for (int r = 0; r < R; ++r)
#pragma unroll
    for (int c = 0; c < R; ++c) s[r][c] = 0.0f;
#pragma unroll 4
  for (int d = 0; d < dim; ++d)
#pragma unroll
    for (int r = 0; r < R; ++r)
#pragma unroll
      for (int c = 0; c < R; ++c) s[r][c] += a[(ty() + r * 16) * kStride<kDim> + d] * b[(tx() + c * 16) * kStride<kDim> + d];
}

// Puts the threads' results where all of the block can read them.
template <int R>
__device__ __forceinline__ void share(float* tile, const float (&s)[R][R]) {
#pragma unroll
  for (int r = 0; r < R; ++r)
#pragma unroll
    for (int c = 0; c < R; ++c) tile[(ty() + r * 16) * kStride<R * 16> + tx() + c * 16] = s[r][c];
}

// c += p b
template <int kDim, int R, int C>
__device__ __forceinline__ void accumulate(float (&c)[R][C], const float* p, const float* b) {
#pragma unroll 4
  for (int j = 0; j < R * 16; ++j)
#pragma unroll
    for (int r = 0; r < R; ++r)
#pragma unroll
      for (int d = 0; d < C; ++d) c[r][d] += p[(ty() + r * 16) * kStride<R * 16> + j] * b[j * kStride<kDim> + tx() + d * 16];
}

template <int R, int C, class T>
__device__ __forceinline__ void store_rows(T* to, int64_t stride, int rows, int dim, const float (&c)[R][C], float factor) {
#pragma unroll
  for (int r = 0; r < R; ++r)
#pragma unroll
    for (int d = 0; d < C; ++d)
      if (ty() + r * 16 < rows && tx() + d * 16 < dim) to[(ty() + r * 16) * stride + tx() + d * 16] = narrow<T>(c[r][d] * factor);
}

// Over the 16 threads of a row.
__device__ __forceinline__ float row_sum(float x) {
#pragma unroll
  for (int lane = 8; lane > 0; lane /= 2) x += __shfl_xor_sync(kFullMask, x, lane);
  return x;
}
__device__ __forceinline__ float row_max(float x) {
#pragma unroll
  for (int lane = 8; lane > 0; lane /= 2) x = fmaxf(x, __shfl_xor_sync(kFullMask, x, lane));
  return x;
}

}  // namespace rz::cuda::plain
