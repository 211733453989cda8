// SGD over a flat shard in one pass: parameters, the momentum buffer where there is one, and the cast of the new parameters where
// one is wanted.
#include "cuda/grid.h"
#include "cuda/launch.h"
#include "cuda/segments.h"
#include "cuda/vec.h"
#include "ops/sgd.h"

namespace rz::cuda {
namespace {

constexpr int kThreads = 256;

struct Scalars {
  float lr, keep, take, weight_decay, grad_share, buffer_share;
};

struct Pointers {
  float* momentum_buffer;
  const float* grad_scale;
  const int64_t* segments;
  int segment_count;
  bool param_aligned, grad_aligned, buffer_aligned, copy_aligned;
};

// C: the dtype of the copy; unused when `copy` is null.
template <class P, class G, class C>
__global__ void sgd(P* param, const G* grad, C* copy, int64_t numel, Pointers at, Scalars s) {
  const float grad_scale = at.grad_scale ? *at.grad_scale : 1.0f;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x * kGroup;
  for (int64_t i = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * kGroup; i < numel; i += stride) {
    const int64_t count = numel - i;
    float p[kGroup], g[kGroup], sum[kGroup];
    load_group(p, param + i, count, at.param_aligned);
    load_group(g, grad + i, count, at.grad_aligned);
    if (at.momentum_buffer) load_group(sum, at.momentum_buffer + i, count, at.buffer_aligned);
    const unsigned decays = at.segments ? decaying(at.segments, at.segment_count, i) : ~0u;
#pragma unroll
    for (int j = 0; j < kGroup; ++j) {
      const float gradient = g[j] * grad_scale + (decays >> j & 1 ? s.weight_decay : 0.0f) * p[j];
      if (at.momentum_buffer) {
        sum[j] = sum[j] * s.keep + s.take * gradient;
        p[j] -= s.lr * (s.grad_share * gradient + s.buffer_share * sum[j]);
      } else {
        p[j] -= s.lr * gradient;
      }
    }
    store_group(param + i, p, count, at.param_aligned);
    if (at.momentum_buffer) store_group(at.momentum_buffer + i, sum, count, at.buffer_aligned);
    if (copy) store_group(copy + i, p, count, at.copy_aligned);
  }
}

}  // namespace

void run(const Sgd& op, CudaStream& stream) {
  const bool first = op.step == 1;
  const Scalars scalars{static_cast<float>(op.lr),
                        first ? 0.0f : static_cast<float>(op.momentum),
                        first ? 1.0f : static_cast<float>(1.0 - op.dampening),
                        static_cast<float>(op.weight_decay),
                        op.nesterov ? 1.0f : 0.0f,
                        op.nesterov ? static_cast<float>(op.momentum) : 1.0f};
  const Pointers at{op.momentum_buffer.as<float>(),
                    op.grad_scale.as<float>(),
                    op.segments.as<int64_t>(),
                    static_cast<int>(op.segments.numel / 2),
                    is_aligned(op.param.data),
                    is_aligned(op.grad.data),
                    is_aligned(op.momentum_buffer.data),
                    is_aligned(op.copy.data)};
  const unsigned grid = blocks_for(ceil_div(op.param.numel, kGroup), kThreads, stream);
  with_floating(op.param.dtype, [&](auto p) {
    with_floating(op.grad.dtype, [&](auto g) {
      using P = decltype(p);
      using G = decltype(g);
      if constexpr (std::is_same_v<P, float>) {
        with_floating(op.copy.dtype, [&](auto c) {
          using C = decltype(c);
          launch(sgd<P, G, C>, grid, kThreads, 0, stream, op.param.as<P>(), op.grad.as<G>(), op.copy.as<C>(), op.param.numel, at, scalars);
        });
      } else {
        launch(sgd<P, G, float>, grid, kThreads, 0, stream, op.param.as<P>(), op.grad.as<G>(), nullptr, op.param.numel, at, scalars);
      }
    });
  });
}

}  // namespace rz::cuda
