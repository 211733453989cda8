// AdamW with moments of 8 bits, of one run of at most 256 elements. Whole blocks are computed whatever the length, and this file is
// compiled without fused multiply-add: an element's results do not depend on where its run begins, nor on the device.
#include "cpu/simd/table.h"
#include "cpu/simd/vec.h"

namespace rz::cpu::RZ_ISA {

constexpr int kBlock = 256;

struct Moments {
  float m[kBlock], v[kBlock];
  float m_peak, v_peak;
};

template <class G>
RZ_INLINE void new_moments(Moments& out, const Adamw8bitRun& run, const G* g, const AdamWScalars& s, const QuantMaps& maps) {
  float grads[kBlock] = {};
  int32_t m_codes[kBlock] = {}, v_codes[kBlock] = {};
  for (int64_t i = 0; i < run.n; ++i) {
    grads[i] = load(g[i]) * s.grad_scale;
    m_codes[i] = run.m[i];
    v_codes[i] = run.v[i];
  }
  const float m_scale = *run.m_scale, v_scale = *run.v_scale;
  float m_peak = 0, v_peak = 0;
#pragma omp simd
  for (int i = 0; i < kBlock; ++i) {
    float mean = maps.m[m_codes[i]] * m_scale, square = maps.v[v_codes[i]] * v_scale;
    out.m[i] = mean + s.one_minus_beta1 * (grads[i] - mean);
    out.v[i] = square * s.beta2 + s.one_minus_beta2 * grads[i] * grads[i];
  }
  for (int64_t i = run.n; i < kBlock; ++i) out.m[i] = out.v[i] = 0;
#pragma omp simd reduction(max : m_peak, v_peak)
  for (int i = 0; i < kBlock; ++i) {
    float magnitude = __builtin_fabsf(out.m[i]);
    m_peak = magnitude > m_peak ? magnitude : m_peak;
    v_peak = out.v[i] > v_peak ? out.v[i] : v_peak;
  }
  out.m_peak = m_peak;
  out.v_peak = v_peak;
}

// The nearest value of the map, by the 255 middles between neighbours.
RZ_INLINE int32_t code_of(float x, const float* middles) {
  int32_t code = 0;
  for (int32_t half = 128; half > 0; half /= 2) code += x > middles[code + half - 1] ? half : 0;
  return code;
}

RZ_INLINE void encode(uint8_t* codes, const float* values, float peak, const float* middles, int64_t n) {
  const float inverse = peak > 0 ? 1.0f / peak : 0.0f;
  int32_t wide[kBlock];
#pragma omp simd
  for (int i = 0; i < kBlock; ++i) wide[i] = code_of(values[i] * inverse, middles);
  for (int64_t i = 0; i < n; ++i) codes[i] = static_cast<uint8_t>(wide[i]);
}

template <class G>
static void adamw8bit_peaks(float* m_peak, float* v_peak, const void* g, const Adamw8bitRun& run, const AdamWScalars& scalars, const QuantMaps& maps) {
  Moments moments;
  new_moments(moments, run, static_cast<const G*>(g), scalars, maps);
  *m_peak = moments.m_peak;
  *v_peak = moments.v_peak;
}

template <class P, class G>
static void adamw8bit(void* p_, const void* g, const Adamw8bitRun& run, const float* m_peak, const float* v_peak, const AdamWScalars& scalars,
                      const QuantMaps& maps) {
  auto p = static_cast<P*>(p_);
  const AdamWScalars s = scalars;
  Moments moments;
  new_moments(moments, run, static_cast<const G*>(g), s, maps);
#pragma omp simd
  for (int64_t i = 0; i < run.n; ++i) {
    float denominator = __builtin_sqrtf(moments.v[i]) / s.sqrt_bias2 + s.eps;
    store(p[i], load(p[i]) * s.decay - s.step_size * (moments.m[i] / denominator));
  }
  *run.m_scale = m_peak ? *m_peak : moments.m_peak;
  *run.v_scale = v_peak ? *v_peak : moments.v_peak;
  encode(run.m, moments.m, *run.m_scale, maps.m_middles, run.n);
  encode(run.v, moments.v, *run.v_scale, maps.v_middles, run.n);
}

template <class P>
static void add_row(Table& t, int row) {
  t.adamw8bit[row][0] = adamw8bit<P, float>;
  t.adamw8bit[row][1] = adamw8bit<P, bf16>;
  t.adamw8bit[row][2] = adamw8bit<P, f16>;
}

void add_adamw8bit(Table& t) {
  RZ_ENTRY(t, adamw8bit_peaks);
  add_row<float>(t, 0);
  add_row<bf16>(t, 1);
  add_row<f16>(t, 2);
}

}  // namespace rz::cpu::RZ_ISA
