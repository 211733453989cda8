#include "ops/sgd.h"

#include <algorithm>

#include "cpu/parallel.h"
#include "cpu/segments.h"
#include "cpu/simd.h"

namespace rz::cpu {

void run(const Sgd& op) {
  const bool first = op.step == 1;
  SgdScalars plain{};
  plain.lr = static_cast<float>(op.lr);
  plain.keep = first ? 0.0f : static_cast<float>(op.momentum);
  plain.take = first ? 1.0f : static_cast<float>(1.0 - op.dampening);
  plain.grad_share = op.nesterov ? 1.0f : 0.0f;
  plain.buffer_share = op.nesterov ? static_cast<float>(op.momentum) : 1.0f;
  plain.grad_scale = op.grad_scale ? *op.grad_scale.as<float>() : 1.0f;
  SgdScalars decayed = plain;
  decayed.weight_decay = static_cast<float>(op.weight_decay);

  auto kernel = simd().sgd[index_of(op.param.dtype)][index_of(op.grad.dtype)];
  constexpr int64_t kBlock = 4096;  // is still in the first-level cache when it is cast
  auto update = [&](int64_t begin, int64_t end, const SgdScalars& scalars) {
    for (const int64_t step = op.copy ? kBlock : end - begin; begin < end; begin += step) {
      const int64_t n = std::min(step, end - begin);
      float* buffer = op.momentum_buffer ? op.momentum_buffer.as<float>() + begin : nullptr;
      kernel(at(op.param, begin), at(op.grad, begin), buffer, n, scalars);
      if (op.copy) simd().from_f32[index_of(op.copy.dtype)](at(op.copy, begin), op.param.as<float>() + begin, n);
    }
  };
  parallel_for(op.param.numel, 1 << 14, [&](int64_t begin, int64_t end) {
    each_segment(op.segments, begin, end,
                 [&](int64_t from, int64_t to, bool decays) { update(from, to, decays ? decayed : plain); });
  });
}

}  // namespace rz::cpu
