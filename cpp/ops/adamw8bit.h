// AdamW whose moments have 8 bits: each block of 256 elements has a scale, its largest magnitude, and each element a code, a place in
// a map of 256 values from -1 to 1 (exp_avg) or 0 to 1 (exp_avg_sq). As Dettmers et al., 8-bit Optimizers via Block-wise
// Quantization. The update itself is that of ops/adamw.h, with the moments in float32 before they are rounded.
//
// Blocks are of whole parameters; a slice has runs of elements of one block each. Of a block that other ranks have elements of
// (cut), the scale is the largest of all ranks' peaks: adamw8bit_peaks finds this rank's, and adamw8bit gets what all found.
#pragma once
#include "ops/op.h"

namespace rz {

constexpr int64_t kQuantBlock = 256;

namespace detail {
template <class Op>
void check_adamw8bit(const Op& op) {
  const char* name = Op::name;
  expect_floating(name, "grad", op.grad);
  expect_dtype(name, "exp_avg", op.exp_avg, DType::UInt8);
  expect_dtype(name, "exp_avg_sq", op.exp_avg_sq, DType::UInt8);
  expect_numel(name, "exp_avg", op.exp_avg, op.grad.numel);
  expect_numel(name, "exp_avg_sq", op.exp_avg_sq, op.grad.numel);
  expect_dtype(name, "runs", op.runs, DType::Int64);
  expect(op.runs.numel % 2 == 0, name, "runs are pairs");
  for (const View* v : {&op.exp_avg_scale, &op.exp_avg_sq_scale}) {
    expect_dtype(name, "scales", *v, DType::Float32);
    expect_numel(name, "scales", *v, op.runs.numel / 2);
  }
  for (const View* v : {&op.signed_map, &op.unsigned_map}) {
    expect_dtype(name, "maps", *v, DType::Float32);
    expect_numel(name, "maps", *v, 256);
  }
  if (op.cut) {
    expect_dtype(name, "cut", op.cut, DType::Int64);
    expect(op.cut.numel % 2 == 0, name, "cut are pairs");
    expect_dtype(name, "peaks", op.peaks, DType::Float32);
    expect(op.peaks.numel % 2 == 0, name, "peaks are of both moments");
  }
  if (op.grad_scale) {
    expect_numel(name, "grad_scale", op.grad_scale, 1);
    expect_dtype(name, "grad_scale", op.grad_scale, DType::Float32);
  }
}
}  // namespace detail

struct Adamw8bitPeaks {
  static constexpr const char* name = "adamw8bit_peaks";
  View peaks;                   // (2 · slots) float32: of exp_avg, then of exp_avg_sq; slots of no run here stay as they are
  View cut;                     // (2 · count) int64: [run, slot], runs ascending
  View grad;                    // (n) any floating dtype
  View exp_avg, exp_avg_sq;     // (n) uint8: codes
  View exp_avg_scale, exp_avg_sq_scale;  // (runs) float32
  View runs;                    // (2 · runs) int64: [begin, end) of at most 256 elements, ascending
  View signed_map, unsigned_map;  // (256) float32, ascending
  OptionalView grad_scale;      // (1) float32: multiplies the gradient (clipping)
  double beta1, beta2;
  RZ_OPERANDS(peaks, cut, grad, exp_avg, exp_avg_sq, exp_avg_scale, exp_avg_sq_scale, runs, signed_map, unsigned_map, grad_scale, beta1, beta2)
  void check() const { detail::check_adamw8bit(*this); }
};

struct Adamw8bit {
  static constexpr const char* name = "adamw8bit";
  View param;                   // (n) float32 or bfloat16
  View grad;                    // (n) any floating dtype
  View exp_avg, exp_avg_sq;     // (n) uint8: codes
  View exp_avg_scale, exp_avg_sq_scale;  // (runs) float32
  View runs;                    // (2 · runs) int64: [begin, end) of at most 256 elements, ascending
  View signed_map, unsigned_map;  // (256) float32, ascending
  OptionalView cut;             // (2 · count) int64: [run, slot], runs ascending
  OptionalView peaks;           // (2 · slots) float32, of all ranks
  OptionalView grad_scale;      // (1) float32
  OptionalView copy;            // (n) any floating dtype: the updated float32 parameters, cast in the same pass
  double lr, beta1, beta2, eps, weight_decay;
  int64_t step;  // 1 for the first update
  RZ_OPERANDS(param, grad, exp_avg, exp_avg_sq, exp_avg_scale, exp_avg_sq_scale, runs, signed_map, unsigned_map, cut, peaks, grad_scale, copy,
              lr, beta1, beta2, eps, weight_decay, step)
  void check() const {
    detail::check_adamw8bit(*this);
    expect_numel(name, "grad", grad, param.numel);
    expect_floating(name, "param", param);
    expect(!cut == !peaks, name, "cut and peaks come together");
    if (copy) {
      expect_numel(name, "copy", copy, param.numel);
      expect_floating(name, "copy", copy);
      expect_dtype(name, "param with a copy", param, DType::Float32);
    }
    expect(step >= 1, name, "step counts from 1");
  }
};

namespace cpu {
void run(const Adamw8bitPeaks&);
void run(const Adamw8bit&);
}  // namespace cpu

namespace cuda {
void run(const Adamw8bitPeaks&, CudaStream&);
void run(const Adamw8bit&, CudaStream&);
}  // namespace cuda
}  // namespace rz
