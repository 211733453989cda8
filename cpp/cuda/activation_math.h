// SwiGLU and GELU of one element and their slopes, in float32.
#pragma once
#include "cuda/device.h"

namespace rz::cuda {

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

struct Silu {
  float value, slope;
  __device__ __forceinline__ explicit Silu(float x) {
    const float s = sigmoid(x);
    value = x * s;
    slope = s + value * (1.0f - s);
  }
};

struct Gelu {
  __device__ __forceinline__ static float cdf(float x) { return 0.5f * (1.0f + erff(x * 0.707106781186547524f)); }
  __device__ __forceinline__ static float value(float x) { return x * cdf(x); }
  __device__ __forceinline__ static float slope(float x) { return cdf(x) + x * (0.398942280401432678f * expf(-0.5f * x * x)); }
};

// ½ (1 + tanh z) is sigmoid(2z).
struct TanhGelu {
  __device__ __forceinline__ static float gate(float x) { return sigmoid(1.59576912160573f * x * (1.0f + 0.044715f * x * x)); }
  __device__ __forceinline__ static float value(float x) { return x * gate(x); }
  __device__ __forceinline__ static float slope(float x) {
    const float g = gate(x);
    return g * (1.0f + x * (1.0f - g) * (1.59576912160573f * (1.0f + 0.134145f * x * x)));
  }
};

}  // namespace rz::cuda
