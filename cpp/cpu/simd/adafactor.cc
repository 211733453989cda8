// Adafactor of a run of elements of one row, in the order of operations of torch.optim.Adafactor.
#include "cpu/simd/table.h"
#include "cpu/simd/vec.h"

namespace rz::cpu::RZ_ISA {

template <class G>
static void column_squares(double* sums, const void* x_, int64_t stride, int64_t rows, int64_t columns) {
  auto x = static_cast<const G*>(x_);
  for (int64_t r = 0; r < rows; ++r) {
    const G* row = x + r * stride;
#pragma omp simd
    for (int64_t c = 0; c < columns; ++c) {
      double v = load(row[c]);
      sums[c] += v * v;
    }
  }
}

template <class G>
static void adafactor_variance(float* variance, const void* g_, int64_t n, float grad_scale, float weight) {
  auto g = static_cast<const G*>(g_);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    float grad = load(g[i]) * grad_scale;
    variance[i] += weight * (grad * grad - variance[i]);
  }
}

RZ_INLINE float update_of(float grad, float column, const AdafactorScalars& s) {
  float variance = s.row * column / s.mean;
  variance = variance < s.floor ? s.floor : variance;
  return grad * s.grad_scale / __builtin_sqrtf(variance);
}

template <class G>
static double adafactor_norm(const void* g_, const float* columns, int64_t n, const AdafactorScalars& scalars) {
  auto g = static_cast<const G*>(g_);
  const AdafactorScalars s = scalars;
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) {
    double update = update_of(load(g[i]), columns[i], s);
    sum += update * update;
  }
  return sum;
}

template <class P, class G>
static void adafactor_step(void* p_, const void* g_, const float* columns, int64_t n, const AdafactorScalars& scalars) {
  auto p = static_cast<P*>(p_);
  auto g = static_cast<const G*>(g_);
  const AdafactorScalars s = scalars;
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) store(p[i], load(p[i]) * s.decay - s.step * update_of(load(g[i]), columns[i], s));
}

template <class P>
static void add_row(Table& t, int row) {
  t.adafactor_step[row][0] = adafactor_step<P, float>;
  t.adafactor_step[row][1] = adafactor_step<P, bf16>;
  t.adafactor_step[row][2] = adafactor_step<P, f16>;
}

void add_adafactor(Table& t) {
  RZ_ENTRY(t, column_squares);
  RZ_ENTRY(t, adafactor_variance);
  RZ_ENTRY(t, adafactor_norm);
  add_row<float>(t, 0);
  add_row<bf16>(t, 1);
  add_row<f16>(t, 2);
}

}  // namespace rz::cpu::RZ_ISA
