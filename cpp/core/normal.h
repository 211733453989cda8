// A pair of standard normals from two random words, by Box–Muller. Only +, −, ×, ÷ and √ of float32 in a fixed order,
// and integer operations: the same bits on every processor and device. Compile with -ffp-contract=off (CUDA:
// --fmad=false). The tail ends at √(62 ln 2) = 6.56 standard deviations.
#pragma once
#include <cstdint>

#if defined(__CUDACC__)
#define RZ_NORMAL __host__ __device__ static __forceinline__
#else
#define RZ_NORMAL static inline __attribute__((always_inline))
#endif

namespace rz::philox {

// −ln(u) for u in [2⁻³¹, 1]
RZ_NORMAL float minus_log(float u) {
  int32_t bits = __builtin_bit_cast(int32_t, u);
  int32_t e = (bits - 0x3f3504f3) >> 23;                      // u = m · 2^e, m in [√½, √2)
  float m = __builtin_bit_cast(float, bits - (e << 23));
  float f = m - 1.0f, z = f * f, n = static_cast<float>(e);
  float p = 7.0376836292e-2f;
  p = p * f - 1.1514610310e-1f;
  p = p * f + 1.1676998740e-1f;
  p = p * f - 1.2420140846e-1f;
  p = p * f + 1.4249322787e-1f;
  p = p * f - 1.6668057665e-1f;
  p = p * f + 2.0000714765e-1f;
  p = p * f - 2.4999993993e-1f;
  p = p * f + 3.3333331174e-1f;
  float tail = p * f * z - 2.12194440e-4f * n - 0.5f * z;
  return -(0.693359375f * n + (f + tail));
}

RZ_NORMAL void normal_pair(uint32_t a, uint32_t b, float& first, float& second) {
  float u = (static_cast<float>(static_cast<int32_t>(a >> 1)) + 1.0f) * 0x1p-31f;  // (0, 1]
  float radius = __builtin_sqrtf(2.0f * minus_log(u));
  // Angle: a quarter turn by the top two bits, plus t in [−π/4, π/4).
  uint32_t quarter = b >> 30;
  float t = static_cast<float>(static_cast<int32_t>(b & 0x3fffffffu) - 0x20000000) * (1.57079632679489662f * 0x1p-30f);
  float z = t * t;
  float s = -1.9515295891e-4f * z + 8.3321608736e-3f;
  s = s * z - 1.6666654611e-1f;
  s = s * z * t + t;
  float c = 2.443315711809948e-5f * z - 1.388731625493765e-3f;
  c = c * z + 4.166664568298827e-2f;
  c = c * z * z - 0.5f * z + 1.0f;
  bool odd = quarter & 1;
  float x = odd ? s : c, y = odd ? c : s;
  uint32_t flip_x = (quarter ^ (quarter >> 1)) & 1, flip_y = quarter >> 1;  // quarters 1, 2 and 2, 3
  x = __builtin_bit_cast(float, __builtin_bit_cast(uint32_t, x) ^ (flip_x << 31));
  y = __builtin_bit_cast(float, __builtin_bit_cast(uint32_t, y) ^ (flip_y << 31));
  first = radius * x;
  second = radius * y;
}

}  // namespace rz::philox
