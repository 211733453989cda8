// AdamW on one flat shard, as torch.optim.AdamW: decoupled weight decay, bias correction in double on the host.
// Weight decay applies to the elements of the given segments only.
#pragma once
#include "ops/op.h"

namespace rz {

struct AdamW {
  static constexpr const char* name = "adamw";
  View param;               // (n) float32 or bfloat16
  View grad;                // (n) any floating dtype
  View exp_avg;             // (n) float32
  View exp_avg_sq;          // (n) float32
  OptionalView segments;    // (2 · count) int64: [begin, end) of the elements that decay, ascending; absent: all decay
  OptionalView grad_scale;  // (1) float32: multiplies the gradient (clipping)
  OptionalView copy;        // (n) any floating dtype: the updated float32 parameters, cast in the same pass
  double lr, beta1, beta2, eps, weight_decay;
  int64_t step;  // 1 for the first update
  RZ_OPERANDS(param, grad, exp_avg, exp_avg_sq, segments, grad_scale, copy, lr, beta1, beta2, eps, weight_decay, step)
  void check() const {
    expect_numel(name, "grad", grad, param.numel);
    expect_numel(name, "exp_avg", exp_avg, param.numel);
    expect_numel(name, "exp_avg_sq", exp_avg_sq, param.numel);
    expect_dtype(name, "exp_avg", exp_avg, DType::Float32);
    expect_dtype(name, "exp_avg_sq", exp_avg_sq, DType::Float32);
    expect_floating(name, "param", param);
    expect_floating(name, "grad", grad);
    if (segments) expect_dtype(name, "segments", segments, DType::Int64);
    if (grad_scale) {
      expect_numel(name, "grad_scale", grad_scale, 1);
      expect_dtype(name, "grad_scale", grad_scale, DType::Float32);
    }
    if (copy) {
      expect_numel(name, "copy", copy, param.numel);
      expect_floating(name, "copy", copy);
      expect_dtype(name, "param with a copy", param, DType::Float32);
    }
    expect(step >= 1, name, "step counts from 1");
  }
};

namespace cpu {
void run(const AdamW&);
}  // namespace cpu

namespace cuda {
void run(const AdamW&, CudaStream&);
}  // namespace cuda
}  // namespace rz
