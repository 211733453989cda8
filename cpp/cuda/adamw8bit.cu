// AdamW with moments of 8 bits: a warp takes a run of at most 256 elements, eight to a lane. Compiled without fused multiply-add, so
// that codes are those of the CPU.
#include <cmath>

#include "cuda/grid.h"
#include "cuda/launch.h"
#include "cuda/vec.h"
#include "ops/adamw8bit.h"

namespace rz::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarp, kEach = static_cast<int>(kQuantBlock) / kWarp, kCodes = 256;

struct Scalars {
  float decay, one_minus_beta1, beta2, one_minus_beta2, sqrt_bias2, eps, step_size;
};

struct State {
  uint8_t *m, *v;
  float *m_scale, *v_scale;
  const int64_t* runs;
  int64_t run_count;
  const float *signed_map, *unsigned_map;
  const int64_t* cut;
  int64_t cut_count;
  float *m_peaks, *v_peaks;
  const float* grad_scale;
};

__device__ float warp_peak(float value) {
#pragma unroll
  for (int lane = kWarp / 2; lane > 0; lane /= 2) {
    const float other = __shfl_xor_sync(kFullMask, value, lane);
    value = other > value ? other : value;
  }
  return value;
}

// The nearest value of the map.
__device__ int code_of(float x, const float* map) {
  int code = 0;
#pragma unroll
  for (int half = kCodes / 2; half > 0; half /= 2) {
    const int last = code + half - 1;
    code += x > (map[last] + map[last + 1]) * 0.5f ? half : 0;
  }
  return code;
}

// This lane's new moments; elements behind the run are zero.
template <class G>
__device__ void new_moments(float (&m)[kEach], float (&v)[kEach], const G* grad, const State& at, const float* m_map, const float* v_map,
                            int64_t run, const Scalars& s) {
  const float scale = at.grad_scale ? *at.grad_scale : 1.0f, m_scale = at.m_scale[run], v_scale = at.v_scale[run];
  const int64_t begin = at.runs[2 * run], count = at.runs[2 * run + 1] - begin;
#pragma unroll
  for (int k = 0; k < kEach; ++k) {
    const int64_t j = k * kWarp + static_cast<int64_t>(threadIdx.x) % kWarp;
    m[k] = v[k] = 0;
    if (j >= count) continue;
    const float g = widen(grad[begin + j]) * scale;
    const float mean = m_map[at.m[begin + j]] * m_scale, square = v_map[at.v[begin + j]] * v_scale;
    m[k] = mean + s.one_minus_beta1 * (g - mean);
    v[k] = square * s.beta2 + s.one_minus_beta2 * g * g;
  }
}

__device__ void peaks_of(float& m_peak, float& v_peak, const float (&m)[kEach], const float (&v)[kEach]) {
  m_peak = v_peak = 0;
#pragma unroll
  for (int k = 0; k < kEach; ++k) {
    const float magnitude = fabsf(m[k]);
    m_peak = magnitude > m_peak ? magnitude : m_peak;
    v_peak = v[k] > v_peak ? v[k] : v_peak;
  }
  m_peak = warp_peak(m_peak);
  v_peak = warp_peak(v_peak);
}

__device__ void load_maps(float* m_map, float* v_map, const State& at) {
  for (int i = static_cast<int>(threadIdx.x); i < kCodes; i += kThreads) {
    m_map[i] = at.signed_map[i];
    v_map[i] = at.unsigned_map[i];
  }
  __syncthreads();
}

template <class G>
__global__ void adamw8bit_peaks(const G* grad, State at, Scalars s) {
  RZ_SHARED(float, m_map, kCodes);
  RZ_SHARED(float, v_map, kCodes);
  load_maps(m_map, v_map, at);
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kWarps + warp; i < at.cut_count; i += static_cast<int64_t>(gridDim.x) * kWarps) {
    float m[kEach], v[kEach], m_peak, v_peak;
    new_moments(m, v, grad, at, m_map, v_map, at.cut[2 * i], s);
    peaks_of(m_peak, v_peak, m, v);
    if (lane != 0) continue;
    at.m_peaks[at.cut[2 * i + 1]] = m_peak;
    at.v_peaks[at.cut[2 * i + 1]] = v_peak;
  }
}

// C: the dtype of the copy; unused when `copy` is null.
template <class P, class G, class C>
__global__ void adamw8bit(P* param, const G* grad, C* copy, State at, Scalars s) {
  RZ_SHARED(float, m_map, kCodes);
  RZ_SHARED(float, v_map, kCodes);
  load_maps(m_map, v_map, at);
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  for (int64_t r = static_cast<int64_t>(blockIdx.x) * kWarps + warp; r < at.run_count; r += static_cast<int64_t>(gridDim.x) * kWarps) {
    float m[kEach], v[kEach], m_peak, v_peak;
    new_moments(m, v, grad, at, m_map, v_map, r, s);
    peaks_of(m_peak, v_peak, m, v);
    int64_t low = 0, high = at.cut_count;  // the first cut run that is not before this one
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (at.cut[2 * middle] < r) low = middle + 1;
      else high = middle;
    }
    if (low < at.cut_count && at.cut[2 * low] == r) {
      m_peak = at.m_peaks[at.cut[2 * low + 1]];
      v_peak = at.v_peaks[at.cut[2 * low + 1]];
    }
    const float m_inverse = m_peak > 0 ? 1.0f / m_peak : 0.0f, v_inverse = v_peak > 0 ? 1.0f / v_peak : 0.0f;
    const int64_t begin = at.runs[2 * r], count = at.runs[2 * r + 1] - begin;
#pragma unroll
    for (int k = 0; k < kEach; ++k) {
      const int64_t j = k * kWarp + lane;
      if (j >= count) continue;
      const float denominator = sqrtf(v[k]) / s.sqrt_bias2 + s.eps;
      const float p = widen(param[begin + j]) * s.decay - s.step_size * (m[k] / denominator);
      param[begin + j] = narrow<P>(p);
      if (copy) copy[begin + j] = narrow<C>(p);
      at.m[begin + j] = static_cast<uint8_t>(code_of(m[k] * m_inverse, m_map));
      at.v[begin + j] = static_cast<uint8_t>(code_of(v[k] * v_inverse, v_map));
    }
    __syncwarp();  // all lanes have read the old scales
    if (lane != 0) continue;
    at.m_scale[r] = m_peak;
    at.v_scale[r] = v_peak;
  }
}

template <class Op>
State state_of(const Op& op) {
  auto* peaks = op.peaks.template as<float>();
  return {op.exp_avg.template as<uint8_t>(),
          op.exp_avg_sq.template as<uint8_t>(),
          op.exp_avg_scale.template as<float>(),
          op.exp_avg_sq_scale.template as<float>(),
          op.runs.template as<int64_t>(),
          op.runs.numel / 2,
          op.signed_map.template as<float>(),
          op.unsigned_map.template as<float>(),
          op.cut.template as<int64_t>(),
          op.cut.numel / 2,
          peaks,
          peaks ? peaks + op.peaks.numel / 2 : nullptr,
          op.grad_scale.template as<float>()};
}

template <class Op>
Scalars moment_scalars(const Op& op) {
  Scalars s{};
  s.one_minus_beta1 = static_cast<float>(1.0 - op.beta1);
  s.beta2 = static_cast<float>(op.beta2);
  s.one_minus_beta2 = static_cast<float>(1.0 - op.beta2);
  return s;
}

}  // namespace

void run(const Adamw8bitPeaks& op, CudaStream& stream) {
  const unsigned grid = blocks_for(op.cut.numel / 2 * kWarp, kThreads, stream);
  with_floating(op.grad.dtype, [&](auto g) {
    using G = decltype(g);
    launch(adamw8bit_peaks<G>, grid, kThreads, 0, stream, op.grad.as<G>(), state_of(op), moment_scalars(op));
  });
}

void run(const Adamw8bit& op, CudaStream& stream) {
  const double bias1 = 1.0 - std::pow(op.beta1, static_cast<double>(op.step));
  const double bias2 = 1.0 - std::pow(op.beta2, static_cast<double>(op.step));
  Scalars scalars = moment_scalars(op);
  scalars.decay = static_cast<float>(1.0 - op.lr * op.weight_decay);
  scalars.sqrt_bias2 = static_cast<float>(std::sqrt(bias2));
  scalars.eps = static_cast<float>(op.eps);
  scalars.step_size = static_cast<float>(op.lr / bias1);
  const unsigned grid = blocks_for(op.runs.numel / 2 * kWarp, kThreads, stream);
  with_floating(op.param.dtype, [&](auto p) {
    with_floating(op.grad.dtype, [&](auto g) {
      using P = decltype(p);
      using G = decltype(g);
      if constexpr (std::is_same_v<P, float>) {
        with_floating(op.copy.dtype, [&](auto c) {
          using C = decltype(c);
          launch(adamw8bit<P, G, C>, grid, kThreads, 0, stream, op.param.as<P>(), op.grad.as<G>(), op.copy.as<C>(), state_of(op), scalars);
        });
      } else {
        launch(adamw8bit<P, G, float>, grid, kThreads, 0, stream, op.param.as<P>(), op.grad.as<G>(), nullptr, state_of(op), scalars);
      }
    });
  });
}

}  // namespace rz::cuda
