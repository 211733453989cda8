// One AdamW update of a flat range, in the order of operations of torch.optim.AdamW.
#include "cpu/simd/table.h"
#include "cpu/simd/vec.h"

namespace rz::cpu::RZ_ISA {

template <class P, class G>
static void adamw(void* p_, const void* g_, float* m, float* v, int64_t n, const AdamWScalars& scalars) {
  auto p = static_cast<P*>(p_);
  auto g = static_cast<const G*>(g_);
  const AdamWScalars s = scalars;
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    float grad = load(g[i]) * s.grad_scale;
    float mean = m[i] + s.one_minus_beta1 * (grad - m[i]);
    float square = v[i] * s.beta2 + s.one_minus_beta2 * grad * grad;
    m[i] = mean;
    v[i] = square;
    float denominator = __builtin_sqrtf(square) / s.sqrt_bias2 + s.eps;
    store(p[i], load(p[i]) * s.decay - s.step_size * (mean / denominator));
  }
}

template <class P>
static void add_row(Table& t, int row) {
  t.adamw[row][0] = adamw<P, float>;
  t.adamw[row][1] = adamw<P, bf16>;
  t.adamw[row][2] = adamw<P, f16>;
}

void add_adamw(Table& t) {
  add_row<float>(t, 0);
  add_row<bf16>(t, 1);
  add_row<f16>(t, 2);
}

}  // namespace rz::cpu::RZ_ISA
