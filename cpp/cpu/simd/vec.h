// Scalars, vectors and elementary functions for the files that are compiled once per instruction set.
// Everything is force-inlined or internal: no symbol of these files is shared between instruction sets.
#pragma once
#include <stdint.h>

#include "core/dtype.h"

#ifndef RZ_ISA
#error "this header belongs to the files of cmake/simd.cmake"
#endif
#define RZ_INLINE static inline __attribute__((always_inline))

namespace rz::cpu::RZ_ISA {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
typedef float vf __attribute__((vector_size(kLanes * 4)));
typedef uint32_t vu __attribute__((vector_size(kLanes * 4)));
typedef int32_t vi __attribute__((vector_size(kLanes * 4)));
typedef float vf_any __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));  // at any address
typedef uint16_t vh __attribute__((vector_size(kLanes * 2)));
typedef uint16_t vh_any __attribute__((vector_size(kLanes * 2), aligned(2), may_alias));

RZ_INLINE vf vload(const float* p) { return *reinterpret_cast<const vf_any*>(p); }
RZ_INLINE void vstore(float* p, vf x) { *reinterpret_cast<vf_any*>(p) = x; }
RZ_INLINE vf vmax(vf a, vf b) { return a > b ? a : b; }
RZ_INLINE vi vlanes() {
  vi lanes{};
  for (int i = 0; i < kLanes; ++i) lanes[i] = i;
  return lanes;
}
// Lane l takes lane l ^ Step.
template <int Step>
RZ_INLINE vf vswap(vf x) {
#if defined(__clang__)
  vf y;
  for (int l = 0; l < kLanes; ++l) y[l] = x[l ^ Step];
  return y;
#else
  return __builtin_shuffle(x, vlanes() ^ Step);
#endif
}
template <int Step = kLanes / 2>
RZ_INLINE float vsum(vf x) {
  x += vswap<Step>(x);
  if constexpr (Step > 1) return vsum<Step / 2>(x);
  return x[0];
}
template <int Step = kLanes / 2>
RZ_INLINE float vtop(vf x) {
  x = vmax(x, vswap<Step>(x));
  if constexpr (Step > 1) return vtop<Step / 2>(x);
  return x[0];
}

constexpr int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
RZ_INLINE int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
RZ_INLINE int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }
RZ_INLINE float maxf(float a, float b) { return a > b ? a : b; }

RZ_INLINE uint32_t bits_of(float x) { return __builtin_bit_cast(uint32_t, x); }
RZ_INLINE float float_of(uint32_t u) { return __builtin_bit_cast(float, u); }

RZ_INLINE vf splat(float x) { return (vf)(bits_of(x) + vu{}); }

// The conversions of core/dtype.h without branches, so that loops over them vectorise.
RZ_INLINE float load(float x) { return x; }
RZ_INLINE float load(bf16 x) { return float_of(static_cast<uint32_t>(x.bits) << 16); }
RZ_INLINE float load(f16 h) {
  uint32_t sign = static_cast<uint32_t>(h.bits & 0x8000) << 16, rest = h.bits & 0x7fff;
  uint32_t special = 0x7f800000u | ((rest & 0x3ff) << 13), normal = (rest + 0x1c000) << 13;
  uint32_t tiny = bits_of(static_cast<float>(static_cast<int32_t>(rest)) * 0x1p-24f);
  uint32_t small = rest >= 0x400 ? normal : tiny;
  return float_of(sign | (rest >= 0x7c00 ? special : small));
}

RZ_INLINE void store(float& y, float x) { y = x; }
RZ_INLINE void store(bf16& y, float x) {
  uint32_t u = bits_of(x), rounded = (u + 0x7fffu + ((u >> 16) & 1)) >> 16, quiet = (u >> 16) | 0x40;
  y.bits = static_cast<uint16_t>((u & 0x7fffffffu) > 0x7f800000u ? quiet : rounded);
}
RZ_INLINE void store(f16& y, float x) {
  uint32_t u = bits_of(x), sign = (u >> 16) & 0x8000, a = u & 0x7fffffffu;
  uint32_t tiny = bits_of(float_of(a) + 0.5f) - 0x3f000000u;  // subnormal: the adder rounds
  uint32_t normal = (a + 0xfffu + ((a >> 13) & 1) - 0x38000000u) >> 13;
  uint32_t finite = a < 0x38800000u ? tiny : normal;
  uint32_t large = a > 0x7f800000u ? 0x7e00u : 0x7c00u;
  y.bits = static_cast<uint16_t>(sign | (a >= 0x477ff000u ? large : finite));
}
template <class T>
RZ_INLINE float rounded(float x) {
  T y;
  store(y, x);
  return load(y);
}

// Whole vectors of any floating dtype.
RZ_INLINE vf vget(const float* p) { return vload(p); }
RZ_INLINE vf vget(const bf16* p) {
  vh bits = *reinterpret_cast<const vh_any*>(p);
  return (vf)(__builtin_convertvector(bits, vu) << 16);
}
RZ_INLINE vf vget(const f16* p) {
  float wide[kLanes];
  for (int i = 0; i < kLanes; ++i) wide[i] = load(p[i]);
  return vload(wide);
}
RZ_INLINE void vput(float* p, vf x) { vstore(p, x); }
RZ_INLINE void vput(bf16* p, vf x) {
  vu u = (vu)x, rounded = (u + 0x7fffu + ((u >> 16) & 1)) >> 16, quiet = (u >> 16) | 0x40;
  vu bits = x == x ? rounded : quiet;
  *reinterpret_cast<vh_any*>(p) = __builtin_convertvector(bits, vh);
}
RZ_INLINE void vput(f16* p, vf x) {
  float wide[kLanes];
  vstore(wide, x);
  for (int i = 0; i < kLanes; ++i) store(p[i], wide[i]);
}
template <class T>
RZ_INLINE vf vget_part(const T* p, int64_t n) {
  T part[kLanes] = {};
  for (int64_t i = 0; i < n; ++i) part[i] = p[i];
  return vget(part);
}
template <class T>
RZ_INLINE void vput_part(T* p, int64_t n, vf x) {
  T part[kLanes];
  vput(part, x);
  for (int64_t i = 0; i < n; ++i) p[i] = part[i];
}
// y[i] = f(x[i]…) by whole vectors; the last one is padded with zeros. y may be one of x.
template <class F, class Y, class... X>
RZ_INLINE void map(int64_t n, Y* y, F f, const X*... x) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) vput(y + i, f(vget(x + i)...));
  if (i < n) vput_part(y + i, n - i, f(vget_part(x + i, n - i)...));
}

// 2^x for x ≤ 127, within 1 ulp; 0 below -126.
RZ_INLINE vf vexp2(vf x) {
  vf shifted = x + 12582912.0f;  // its low bits are round(x)
  vf f = x - (shifted - 12582912.0f);
  vf p = 1.535336188319500e-4f * f + 1.339887440266574e-3f;
  p = p * f + 9.618437357674640e-3f;
  p = p * f + 5.550332471162809e-2f;
  p = p * f + 2.402264791363012e-1f;
  p = p * f + 6.931472028550421e-1f;
  p = p * f + 1.0f;
  vf y = (vf)((vu)p + ((vu)shifted << 23));
  return x < -126.0f ? vf{} : y;
}

// e^x within 1 ulp; 0 below -87.3, and at most e^88.3.
RZ_INLINE float exp_f(float x) {
  float c = x > 88.3f ? 88.3f : x;
  c = c < -87.3f ? -87.3f : c;
  float shifted = c * 1.44269504088896341f + 12582912.0f;  // its low bits are round(x / ln 2)
  float n = shifted - 12582912.0f;
  float r = c - n * 0.693145751953125f;
  r = r - n * 1.42860682030941723e-6f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = (p * r) * r + r + 1.0f;
  float y = float_of(bits_of(p) + (bits_of(shifted) << 23));
  return x < -87.3f ? 0.0f : y;
}

RZ_INLINE float sigmoid_f(float x) { return 1.0f / (1.0f + exp_f(-x)); }

// erf within 1-2 ulp (the approximation is Norbert Juffa's).
RZ_INLINE float erf_f(float x) {
  float t = __builtin_fabsf(x), s = x * x;
  float r = -1.72853470e-5f * t + 3.83197126e-4f;
  float u = -3.88396438e-3f * t + 2.42546219e-2f;
  r = r * s + u;
  r = r * t - 1.06777877e-1f;
  r = r * t - 6.34846687e-1f;
  r = r * t - 1.28717512e-1f;
  r = r * t - t;
  float large = 1.0f - exp_f(r);
  float signed_large = float_of(bits_of(large) | (bits_of(x) & 0x80000000u));
  float q = -5.96761703e-4f;
  q = q * s + 4.99119423e-3f;
  q = q * s - 2.67681349e-2f;
  q = q * s + 1.12819925e-1f;
  q = q * s - 3.76125336e-1f;
  q = q * s + 1.28379166e-1f;
  float small = q * x + x;
  return t > 0.927734375f ? signed_large : small;
}

}  // namespace rz::cpu::RZ_ISA
