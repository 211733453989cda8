#include "ops/adamw.h"

#include <algorithm>
#include <cmath>

#include "cpu/parallel.h"
#include "cpu/segments.h"
#include "cpu/simd.h"

namespace rz::cpu {

void run(const AdamW& op) {
  AdamWScalars plain{};
  double bias1 = 1.0 - std::pow(op.beta1, static_cast<double>(op.step));
  double bias2 = 1.0 - std::pow(op.beta2, static_cast<double>(op.step));
  plain.decay = 1.0f;
  plain.one_minus_beta1 = static_cast<float>(1.0 - op.beta1);
  plain.beta2 = static_cast<float>(op.beta2);
  plain.one_minus_beta2 = static_cast<float>(1.0 - op.beta2);
  plain.sqrt_bias2 = static_cast<float>(std::sqrt(bias2));
  plain.eps = static_cast<float>(op.eps);
  plain.step_size = static_cast<float>(op.lr / bias1);
  plain.grad_scale = op.grad_scale ? *op.grad_scale.as<float>() : 1.0f;
  AdamWScalars decayed = plain;
  decayed.decay = static_cast<float>(1.0 - op.lr * op.weight_decay);

  auto kernel = simd().adamw[index_of(op.param.dtype)][index_of(op.grad.dtype)];
  constexpr int64_t kBlock = 4096;  // is still in the first-level cache when it is cast
  auto update = [&](int64_t begin, int64_t end, const AdamWScalars& scalars) {
    for (const int64_t step = op.copy ? kBlock : end - begin; begin < end; begin += step) {
      const int64_t n = std::min(step, end - begin);
      kernel(at(op.param, begin), at(op.grad, begin), op.exp_avg.as<float>() + begin,
             op.exp_avg_sq.as<float>() + begin, n, scalars);
      if (op.copy) simd().from_f32[index_of(op.copy.dtype)](at(op.copy, begin), op.param.as<float>() + begin, n);
    }
  };
  parallel_for(op.param.numel, 1 << 14, [&](int64_t begin, int64_t end) {
    each_segment(op.segments, begin, end,
                 [&](int64_t from, int64_t to, bool decays) { update(from, to, decays ? decayed : plain); });
  });
}

}  // namespace rz::cpu
