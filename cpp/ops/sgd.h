// SGD on one flat shard, as torch.optim.SGD: weight decay joins the gradient, of the elements of the given segments only.
#pragma once
#include "ops/op.h"

namespace rz {

struct Sgd {
  static constexpr const char* name = "sgd";
  View param;                    // (n) float32 or bfloat16
  View grad;                     // (n) any floating dtype
  OptionalView momentum_buffer;  // (n) float32, zeros before the first update; absent: no momentum
  OptionalView segments;         // (2 · count) int64: [begin, end) of the elements that decay, ascending; absent: all decay
  OptionalView grad_scale;       // (1) float32: multiplies the gradient (clipping)
  OptionalView copy;             // (n) any floating dtype: the updated float32 parameters, cast in the same pass
  double lr, momentum, dampening, weight_decay;
  bool nesterov;
  int64_t step;  // 1 for the first update, whose gradient is not dampened
  RZ_OPERANDS(param, grad, momentum_buffer, segments, grad_scale, copy, lr, momentum, dampening, weight_decay, nesterov, step)
  void check() const {
    expect_numel(name, "grad", grad, param.numel);
    expect_floating(name, "param", param);
    expect_floating(name, "grad", grad);
    if (momentum_buffer) {
      expect_numel(name, "momentum_buffer", momentum_buffer, param.numel);
      expect_dtype(name, "momentum_buffer", momentum_buffer, DType::Float32);
    }
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
void run(const Sgd&);
}  // namespace cpu

namespace cuda {
void run(const Sgd&, CudaStream&);
}  // namespace cuda
}  // namespace rz
