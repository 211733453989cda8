// AdamW over a flat shard in one pass: parameters, both moments, and the cast of the new parameters where one is wanted.
#include <cmath>

#include "cuda/grid.h"
#include "cuda/launch.h"
#include "cuda/segments.h"
#include "cuda/vec.h"
#include "ops/adamw.h"

namespace rz::cuda {
namespace {

constexpr int kThreads = 256;

struct Scalars {
  float decay, one_minus_beta1, beta2, one_minus_beta2, sqrt_bias2, eps, step_size;
};

struct Pointers {
  float *exp_avg, *exp_avg_sq;
  const float* grad_scale;
  const int64_t* segments;
  int segment_count;
  bool param_aligned, grad_aligned, average_aligned, square_aligned, copy_aligned;
};

// C: the dtype of the copy; unused when `copy` is null.
template <class P, class G, class C>
__global__ void adamw(P* param, const G* grad, C* copy, int64_t numel, Pointers at, Scalars s) {
  const float grad_scale = at.grad_scale ? *at.grad_scale : 1.0f;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x * kGroup;
  for (int64_t i = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * kGroup; i < numel; i += stride) {
    const int64_t count = numel - i;
    float p[kGroup], g[kGroup], m[kGroup], v[kGroup];
    load_group(p, param + i, count, at.param_aligned);
    load_group(g, grad + i, count, at.grad_aligned);
    load_group(m, at.exp_avg + i, count, at.average_aligned);
    load_group(v, at.exp_avg_sq + i, count, at.square_aligned);
    const unsigned decays = at.segments ? decaying(at.segments, at.segment_count, i) : ~0u;
#pragma unroll
    for (int j = 0; j < kGroup; ++j) {
      const float gradient = g[j] * grad_scale;
      m[j] += s.one_minus_beta1 * (gradient - m[j]);
      v[j] = v[j] * s.beta2 + s.one_minus_beta2 * gradient * gradient;
      const float denominator = sqrtf(v[j]) / s.sqrt_bias2 + s.eps;
      p[j] = p[j] * (decays >> j & 1 ? s.decay : 1.0f) - s.step_size * (m[j] / denominator);
    }
    store_group(param + i, p, count, at.param_aligned);
    store_group(at.exp_avg + i, m, count, at.average_aligned);
    store_group(at.exp_avg_sq + i, v, count, at.square_aligned);
    if (copy) store_group(copy + i, p, count, at.copy_aligned);
  }
}

}  // namespace

void run(const AdamW& op, CudaStream& stream) {
  const double bias1 = 1.0 - std::pow(op.beta1, static_cast<double>(op.step));
  const double bias2 = 1.0 - std::pow(op.beta2, static_cast<double>(op.step));
  const Scalars scalars{static_cast<float>(1.0 - op.lr * op.weight_decay), static_cast<float>(1.0 - op.beta1),
                        static_cast<float>(op.beta2),                      static_cast<float>(1.0 - op.beta2),
                        static_cast<float>(std::sqrt(bias2)),              static_cast<float>(op.eps),
                        static_cast<float>(op.lr / bias1)};
  const Pointers at{op.exp_avg.as<float>(),        op.exp_avg_sq.as<float>(),      op.grad_scale.as<float>(),    op.segments.as<int64_t>(),
                    static_cast<int>(op.segments.numel / 2), is_aligned(op.param.data), is_aligned(op.grad.data), is_aligned(op.exp_avg.data),
                    is_aligned(op.exp_avg_sq.data), is_aligned(op.copy.data)};
  const unsigned grid = blocks_for(ceil_div(op.param.numel, kGroup), kThreads, stream);
  with_floating(op.param.dtype, [&](auto p) {
    with_floating(op.grad.dtype, [&](auto g) {
      using P = decltype(p);
      using G = decltype(g);
      if constexpr (std::is_same_v<P, float>) {
        with_floating(op.copy.dtype, [&](auto c) {
          using C = decltype(c);
          launch(adamw<P, G, C>, grid, kThreads, 0, stream, op.param.as<P>(), op.grad.as<G>(), op.copy.as<C>(), op.param.numel, at, scalars);
        });
      } else {
        launch(adamw<P, G, float>, grid, kThreads, 0, stream, op.param.as<P>(), op.grad.as<G>(), nullptr, op.param.numel, at, scalars);
      }
    });
  });
}

}  // namespace rz::cuda
