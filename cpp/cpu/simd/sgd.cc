// One update of SGD of a flat range, in the order of operations of torch.optim.SGD.
#include "cpu/simd/table.h"
#include "cpu/simd/vec.h"

namespace rz::cpu::RZ_ISA {

template <class P, class G>
static void sgd(void* p_, const void* g_, float* buffer, int64_t n, const SgdScalars& scalars) {
  auto p = static_cast<P*>(p_);
  auto g = static_cast<const G*>(g_);
  const SgdScalars s = scalars;
  if (!buffer) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
      float param = load(p[i]);
      store(p[i], param - s.lr * (load(g[i]) * s.grad_scale + s.weight_decay * param));
    }
    return;
  }
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    float param = load(p[i]);
    float grad = load(g[i]) * s.grad_scale + s.weight_decay * param;
    float sum = buffer[i] * s.keep + s.take * grad;
    buffer[i] = sum;
    store(p[i], param - s.lr * (s.grad_share * grad + s.buffer_share * sum));
  }
}

template <class P>
static void add_row(Table& t, int row) {
  t.sgd[row][0] = sgd<P, float>;
  t.sgd[row][1] = sgd<P, bf16>;
  t.sgd[row][2] = sgd<P, f16>;
}

void add_sgd(Table& t) {
  add_row<float>(t, 0);
  add_row<bf16>(t, 1);
  add_row<f16>(t, 2);
}

}  // namespace rz::cpu::RZ_ISA
