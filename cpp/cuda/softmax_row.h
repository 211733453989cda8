// Softmax of a row of logits by one block, in float32, for rows too long to keep: one pass for the maximum and the sum, and what
// callers do in a second one. And what cross entropies have in common: the denominator and the sum of the rows' losses.
#pragma once
#include <cmath>

#include "cuda/launch.h"
#include "cuda/reduce.h"
#include "cuda/vec.h"
#include "ops/op.h"

namespace rz::cuda {

constexpr int kRowThreads = 512, kRowTile = kRowThreads * kGroup;

// A row is gone over in tiles of eight columns a thread: neighbours where rows start at multiples of 16 bytes, else such that
// the threads of a warp read neighbours.
template <bool kAligned>
__device__ __forceinline__ int64_t column_of(int64_t tile, int j) {
  return tile + (kAligned ? static_cast<int>(threadIdx.x) * kGroup + j : j * kRowThreads + static_cast<int>(threadIdx.x));
}

template <bool kAligned, class T>
__device__ __forceinline__ void load_tile(float (&out)[kGroup], const T* row, int64_t tile, int64_t n) {
  if constexpr (kAligned) {
    const int64_t c = column_of<true>(tile, 0);
    load_group(out, row + c, n - c, true);
  } else {
#pragma unroll
    for (int j = 0; j < kGroup; ++j) {
      const int64_t c = column_of<false>(tile, j);
      out[j] = c < n ? widen(row[c]) : 0.0f;
    }
  }
}

template <bool kAligned, class T>
__device__ __forceinline__ void store_tile(T* row, const float (&values)[kGroup], int64_t tile, int64_t n) {
  if constexpr (kAligned) {
    const int64_t c = column_of<true>(tile, 0);
    store_group(row + c, values, n - c, true);
  } else {
#pragma unroll
    for (int j = 0; j < kGroup; ++j) {
      const int64_t c = column_of<false>(tile, j);
      if (c < n) row[c] = narrow<T>(values[j]);
    }
  }
}

struct SoftmaxStats {
  float top = -INFINITY, sum = 0;  // the maximum, and Σ exp(logit − maximum)
};

// Nothing seen yet has the maximum −∞, from which no difference may be taken.
__device__ __forceinline__ float reference(float top) { return top == -INFINITY ? 0.0f : top; }

__device__ __forceinline__ SoftmaxStats merge(SoftmaxStats a, SoftmaxStats b) {
  SoftmaxStats both;
  both.top = fmaxf(a.top, b.top);
  both.sum = a.sum * expf(a.top - reference(both.top)) + b.sum * expf(b.top - reference(both.top));
  return both;
}

__device__ __forceinline__ SoftmaxStats warp_merge(SoftmaxStats stats) {
#pragma unroll
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2)
    stats = merge(stats, {__shfl_xor_sync(kFullMask, stats.top, lanes), __shfl_xor_sync(kFullMask, stats.sum, lanes)});
  return stats;
}

// Every thread gets the statistics of columns 0 … n − 1. Has a barrier after the last read of the row.
template <bool kAligned, class T>
__device__ __forceinline__ SoftmaxStats softmax_stats(const T* row, int64_t n) {
  constexpr int kWarps = kRowThreads / kWarp;
  RZ_SHARED(SoftmaxStats, partial, kWarps + 1);
  SoftmaxStats stats;
  for (int64_t tile = 0; tile < n; tile += kRowTile) {
    float x[kGroup], top = stats.top;
    load_tile<kAligned>(x, row, tile, n);
#pragma unroll
    for (int j = 0; j < kGroup; ++j)
      if (column_of<kAligned>(tile, j) < n) top = fmaxf(top, x[j]);
    const float from = reference(top);
    stats.sum *= expf(stats.top - from);
    stats.top = top;
#pragma unroll
    for (int j = 0; j < kGroup; ++j)
      if (column_of<kAligned>(tile, j) < n) stats.sum += expf(x[j] - from);
  }
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  stats = warp_merge(stats);
  if (lane == 0) partial[warp] = stats;
  __syncthreads();
  if (warp == 0) {
    stats = warp_merge(lane < kWarps ? partial[lane] : SoftmaxStats{});
    if (lane == 0) partial[kWarps] = stats;
  }
  __syncthreads();
  return partial[kWarps];
}

// What the loss is divided by: a number of the caller, or one that was counted on the device.
struct Denominator {
  double given;
  const double* counted;
  __device__ __forceinline__ double value() const { return counted ? *counted : given; }
};

// `counted`: room for a number, used if `given` is 0: then it is the number of labels ≥ 0.
Denominator denominator_of(double given, const View& labels, double* counted, CudaStream& stream);

// loss (+)= Σ losses / denominator, in order.
void write_loss(const View& loss, const double* losses, int64_t rows, Denominator denominator, bool accumulate, CudaStream& stream);

}  // namespace rz::cuda
