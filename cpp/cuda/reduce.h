// Sums over a warp and over a block, in an order that does not depend on timing. Every thread gets the result.
#pragma once
#include "cuda/device.h"

namespace rz::cuda {

template <class T>
__device__ __forceinline__ T warp_sum(T value) {
#pragma unroll
  for (int lane = kWarp / 2; lane > 0; lane /= 2) value += __shfl_xor_sync(kFullMask, value, lane);
  return value;
}

// `threads` along x is a multiple of 32; blocks of one warp along x may have several rows along y, each with a sum of its own.
template <class T>
__device__ T block_sum(T value, int threads) {
  RZ_SHARED(T, partial, kWarp);
  value = warp_sum(value);
  if (threads == kWarp) return value;
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  __syncthreads();  // the sums of an earlier call have been read
  if (lane == 0) partial[warp] = value;
  __syncthreads();
  return warp_sum(lane < threads / kWarp ? partial[lane] : T{});
}

}  // namespace rz::cuda
