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
  float grads[kBlock], means[kBlock], squares[kBlock];
  for (int64_t i = 0; i < run.n; ++i) {
    grads[i] = load(g[i]) * s.grad_scale;
    means[i] = maps.m.values[run.m[i]];
    squares[i] = maps.v.values[run.v[i]];
  }
  for (int64_t i = run.n; i < kBlock; ++i) grads[i] = means[i] = squares[i] = 0;
  const float m_scale = *run.m_scale, v_scale = *run.v_scale;
  float m_peak = 0, v_peak = 0;
#pragma omp simd
  for (int i = 0; i < kBlock; ++i) {
    float mean = means[i] * m_scale, square = squares[i] * v_scale;
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

// The nearest values of the map, by the middles between neighbours: the table is at most two below them for the maps that are used.
RZ_INLINE void encode(uint8_t* codes, const float* values, float peak, const QuantMap& map, int64_t n) {
  const float inverse = peak > 0 ? 1.0f / peak : 0.0f;
  float scaled[kBlock];
  int32_t keys[kBlock];
#pragma omp simd
  for (int i = 0; i < kBlock; ++i) {
    const float x = values[i] * inverse;
    const auto bits = __builtin_bit_cast(int32_t, x);
    int32_t key = ((bits & 0x7fffffff) >> 16) - kQuantKeyBase + 1;
    key = key < 0 ? 0 : key;
    key = key > kQuantKeys - 1 ? kQuantKeys - 1 : key;
    keys[i] = key + (bits < 0 ? kQuantKeys : 0);
    scaled[i] = x;
  }
  for (int64_t i = 0; i < n; ++i) {
    const float x = scaled[i];
    int32_t code = map.first[keys[i]];
    code += static_cast<int32_t>(x > map.middles[code]);
    code += static_cast<int32_t>(x > map.middles[code]);
    while (__builtin_expect(x > map.middles[code], 0)) ++code;
    codes[i] = static_cast<uint8_t>(code);
  }
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
  encode(run.m, moments.m, *run.m_scale, maps.m, run.n);
  encode(run.v, moments.v, *run.v_scale, maps.v, run.n);
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
