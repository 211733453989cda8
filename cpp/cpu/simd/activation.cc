// SwiGLU and GELU over flat ranges, in float32.
#include "cpu/simd/table.h"
#include "cpu/simd/vec.h"

namespace rz::cpu::RZ_ISA {

template <class T>
static void swiglu_forward(void* y_, const void* gate_, const void* up_, int64_t n) {
  auto y = static_cast<T*>(y_);
  auto gate = static_cast<const T*>(gate_), up = static_cast<const T*>(up_);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    float g = load(gate[i]);
    store(y[i], g * sigmoid_f(g) * load(up[i]));
  }
}

template <class T>
static void swiglu_backward(void* d_gate_, void* d_up_, const void* dy_, const void* gate_, const void* up_,
                            int64_t n) {
  auto d_gate = static_cast<T*>(d_gate_), d_up = static_cast<T*>(d_up_);
  auto dy = static_cast<const T*>(dy_), gate = static_cast<const T*>(gate_), up = static_cast<const T*>(up_);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    float g = load(gate[i]), d = load(dy[i]), s = sigmoid_f(g);
    float silu = g * s, u = load(up[i]);
    store(d_up[i], d * silu);
    store(d_gate[i], d * u * (s + silu * (1.0f - s)));
  }
}

template <class T>
static float weighted_swiglu_backward(void* d_gate_, void* d_up_, void* weighted_act_, const float* d_act,
                                      const void* gate_, const void* up_, float weight, int64_t n) {
  auto d_gate = static_cast<T*>(d_gate_), d_up = static_cast<T*>(d_up_), weighted_act = static_cast<T*>(weighted_act_);
  auto gate = static_cast<const T*>(gate_), up = static_cast<const T*>(up_);
  float dot = 0;
#pragma omp simd reduction(+ : dot)
  for (int64_t i = 0; i < n; ++i) {
    float g = load(gate[i]), u = load(up[i]), s = sigmoid_f(g);
    float silu = g * s, act = silu * u, d = d_act[i] * weight;
    dot += d_act[i] * act;
    store(weighted_act[i], act * weight);
    store(d_up[i], d * silu);
    store(d_gate[i], d * u * (s + silu * (1.0f - s)));
  }
  return dot;
}

template <class T>
static void gelu_forward(void* y_, const void* x_, int64_t n) {
  auto y = static_cast<T*>(y_);
  auto x = static_cast<const T*>(x_);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    float v = load(x[i]);
    store(y[i], 0.5f * v * (1.0f + erf_f(v * 0.707106781186547524f)));
  }
}

template <class T>
static void gelu_backward(void* dx_, const void* dy_, const void* x_, int64_t n) {
  auto dx = static_cast<T*>(dx_);
  auto dy = static_cast<const T*>(dy_), x = static_cast<const T*>(x_);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    float v = load(x[i]);
    float cdf = 0.5f * (1.0f + erf_f(v * 0.707106781186547524f));
    float pdf = 0.398942280401432678f * exp_f(-0.5f * v * v);
    store(dx[i], load(dy[i]) * (cdf + v * pdf));
  }
}

// ½ (1 + tanh z) is sigmoid(2z).
RZ_INLINE float gelu_tanh_gate(float x) { return sigmoid_f(1.59576912160573f * x * (1.0f + 0.044715f * x * x)); }

template <class T>
static void gelu_tanh_forward(void* y_, const void* x_, int64_t n) {
  auto y = static_cast<T*>(y_);
  auto x = static_cast<const T*>(x_);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    float v = load(x[i]);
    store(y[i], v * gelu_tanh_gate(v));
  }
}

template <class T>
static void gelu_tanh_backward(void* dx_, const void* dy_, const void* x_, int64_t n) {
  auto dx = static_cast<T*>(dx_);
  auto dy = static_cast<const T*>(dy_), x = static_cast<const T*>(x_);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    float v = load(x[i]), gate = gelu_tanh_gate(v);
    float slope = 1.59576912160573f * (1.0f + 0.134145f * v * v);
    store(dx[i], load(dy[i]) * gate * (1.0f + v * (1.0f - gate) * slope));
  }
}

void add_activation(Table& t) {
  RZ_ENTRY(t, swiglu_forward);
  RZ_ENTRY(t, swiglu_backward);
  RZ_ENTRY(t, weighted_swiglu_backward);
  RZ_ENTRY(t, gelu_forward);
  RZ_ENTRY(t, gelu_backward);
  RZ_ENTRY(t, gelu_tanh_forward);
  RZ_ENTRY(t, gelu_tanh_backward);
}

}  // namespace rz::cpu::RZ_ISA
