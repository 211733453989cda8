// Elements in groups of eight: 16 bytes of a 16-bit dtype, 32 of float32. Everything is float in registers.
#pragma once
#include "core/dtype.h"
#include "cuda/device.h"

namespace rz::cuda {

constexpr int kGroup = 8;

struct alignas(16) Bytes16 {
  uint32_t word[4];
};

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(bf16 x) { return __builtin_bit_cast(float, static_cast<uint32_t>(x.bits) << 16); }
__device__ __forceinline__ float widen(f16 x) { return __half2float(__builtin_bit_cast(__half, x.bits)); }

template <class T>
__device__ __forceinline__ T narrow(float x);
template <>
__device__ __forceinline__ float narrow<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ bf16 narrow<bf16>(float x) {
  return {__builtin_bit_cast(uint16_t, __float2bfloat16_rn(x))};
}
template <>
__device__ __forceinline__ f16 narrow<f16>(float x) {
  return {__builtin_bit_cast(uint16_t, __float2half_rn(x))};
}
template <class T>
__device__ __forceinline__ float rounded(float x) {
  return widen(narrow<T>(x));
}

// `aligned`: the address is a multiple of 16. `count`: 8, or what is left at the end; missing values are zero.
template <class T>
__device__ __forceinline__ void load_group(float (&out)[kGroup], const T* from, int64_t count, bool aligned) {
  if (aligned && count >= kGroup) {
    constexpr int kPieces = kGroup * sizeof(T) / 16, kEach = 16 / sizeof(T);
#pragma unroll
    for (int p = 0; p < kPieces; ++p) {
      Bytes16 raw = reinterpret_cast<const Bytes16*>(from)[p];
      const T* values = reinterpret_cast<const T*>(&raw);
#pragma unroll
      for (int i = 0; i < kEach; ++i) out[p * kEach + i] = widen(values[i]);
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < kGroup; ++i) out[i] = i < count ? widen(from[i]) : 0.0f;
}

template <class T>
__device__ __forceinline__ void store_group(T* to, const float (&values)[kGroup], int64_t count, bool aligned) {
  if (aligned && count >= kGroup) {
    constexpr int kPieces = kGroup * sizeof(T) / 16, kEach = 16 / sizeof(T);
#pragma unroll
    for (int p = 0; p < kPieces; ++p) {
      Bytes16 raw;
      T* narrowed = reinterpret_cast<T*>(&raw);
#pragma unroll
      for (int i = 0; i < kEach; ++i) narrowed[i] = narrow<T>(values[p * kEach + i]);
      reinterpret_cast<Bytes16*>(to)[p] = raw;
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < kGroup; ++i)
    if (i < count) to[i] = narrow<T>(values[i]);
}

inline bool is_aligned(const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; }

// Calls `visit` with a value of the floating type that `dtype` stands for.
template <class Visit>
void with_floating(DType dtype, Visit visit) {
  switch (dtype) {
    case DType::BFloat16: return visit(bf16{});
    case DType::Float16: return visit(f16{});
    default: return visit(0.0f);
  }
}

}  // namespace rz::cuda
