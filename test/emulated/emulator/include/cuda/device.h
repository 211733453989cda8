// cpp/cuda/device.h for the emulator: the language of kernels as host code.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#include "block.h"

#define __launch_bounds__(...)
#define threadIdx (::rz::emulator::position.thread)
#define blockIdx (::rz::emulator::position.block)
#define blockDim (::rz::emulator::position.block_size)
#define gridDim (::rz::emulator::position.grid)

#define RZ_SHARED(type, name, count)                            \
  static ::rz::emulator::SharedArray<type, (count)> name##_shared; \
  auto& name = name##_shared.array()

namespace rz::cuda {

constexpr unsigned kFullMask = 0xffffffffu;
constexpr int kWarp = 32;

template <class T>
T* dynamic_shared() {
  return static_cast<T*>(emulator::dynamic_shared());
}

inline void __syncthreads() { emulator::block_barrier(); }

inline void __syncwarp(unsigned mask = kFullMask) {
  int nothing = 0;
  emulator::warp_exchange(mask, emulator::WarpCall::Sync, &nothing, sizeof nothing);
}

// The value of `lane` in the segment of `width` lanes; garbage if that lane is not in the mask, one's own if it is outside the segment.
template <class T>
T from_lane(unsigned mask, T value, int lane, int width) {
  static_assert(sizeof(T) <= 16);
  const int own = emulator::lane_of_thread(), begin = own / width * width;
  const emulator::Lanes& lanes = emulator::warp_exchange(mask, emulator::WarpCall::Shuffle, &value, sizeof value);
  if (lane < begin || lane >= begin + width) return value;
  T result;
  std::memcpy(&result, lanes.value[lane], sizeof result);
  return result;
}

template <class T>
T __shfl_sync(unsigned mask, T value, int lane, int width = kWarp) {
  return from_lane(mask, value, emulator::lane_of_thread() / width * width + (lane & (width - 1)), width);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = kWarp) {
  return from_lane(mask, value, emulator::lane_of_thread() ^ lanes, width);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = kWarp) {
  return from_lane(mask, value, emulator::lane_of_thread() - static_cast<int>(by), width);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = kWarp) {
  return from_lane(mask, value, emulator::lane_of_thread() + static_cast<int>(by), width);
}

inline unsigned __ballot_sync(unsigned mask, int predicate) {
  const emulator::Lanes& lanes = emulator::warp_exchange(mask, emulator::WarpCall::Ballot, &predicate, sizeof predicate);
  unsigned bits = 0;
  for (int lane = 0; lane < kWarp; ++lane)
    if (mask >> lane & 1 && static_cast<int>(lanes.value[lane][0]) != 0) bits |= 1u << lane;
  return bits;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) == mask; }

// Fibers change places at barriers only, so these are atomic as they are.
template <class T>
T atomicAdd(T* at, T value) {
  T old = *at;
  *at = old + value;
  return old;
}
template <class T>
T atomicMax(T* at, T value) {
  T old = *at;
  if (value > old) *at = value;
  return old;
}
template <class T>
T atomicCAS(T* at, T expected, T value) {
  T old = *at;
  if (old == expected) *at = value;
  return old;
}
inline void __threadfence() {}

inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline float __expf(float x) { return std::exp(x); }
inline float __fdividef(float a, float b) { return a / b; }

}  // namespace rz::cuda
