// Softmax cross entropy of one row of float32 logits, whole or in the parts of a split vocabulary.
#include <math.h>

#include "cpu/simd/table.h"
#include "cpu/simd/vec.h"

namespace rz::cpu::RZ_ISA {

constexpr int64_t kBlock = 4096;  // summed on its own: a vocabulary has 10⁵ tokens, a float 24 bits

RZ_INLINE float row_top(const float* row, int64_t n) {
  float top = row[0];
#pragma omp simd reduction(max : top)
  for (int64_t i = 0; i < n; ++i) top = maxf(row[i], top);
  return top;
}

template <class T>
static double cross_entropy_row(void* d_, float* row, int64_t n, int64_t label, float scale) {
  float top = row_top(row, n), target = row[label];
  double sum = 0;
  for (int64_t b = 0; b < n; b += kBlock) {
    float part = 0;
    int64_t end = min64(n, b + kBlock);
#pragma omp simd reduction(+ : part)
    for (int64_t i = b; i < end; ++i) {
      float e = exp_f(row[i] - top);
      row[i] = e;
      part += e;
    }
    sum += part;
  }
  if (d_) {
    auto d = static_cast<T*>(d_);
    float factor = static_cast<float>(scale / sum), hot = row[label] * factor - scale;
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) store(d[i], row[i] * factor);
    store(d[label], hot);
  }
  return log(sum) - (static_cast<double>(target) - static_cast<double>(top));
}

static void softmax_stats_row(float* stats, const float* row, int64_t n) {
  float top = n > 0 ? row_top(row, n) : -INFINITY;
  double sum = 0;
  for (int64_t b = 0; top != -INFINITY && b < n; b += kBlock) {
    float part = 0;
    int64_t end = min64(n, b + kBlock);
#pragma omp simd reduction(+ : part)
    for (int64_t i = b; i < end; ++i) part += exp_f(row[i] - top);
    sum += part;
  }
  stats[0] = top;
  stats[1] = static_cast<float>(sum);
}

template <class T>
static void softmax_gradient_row(void* d_, const float* row, int64_t n, float top, float factor) {
  auto d = static_cast<T*>(d_);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) store(d[i], exp_f(row[i] - top) * factor);
}

void add_softmax(Table& t) {
  RZ_ENTRY(t, cross_entropy_row);
  RZ_ENTRY(t, softmax_gradient_row);
  t.softmax_stats_row = softmax_stats_row;
}

}  // namespace rz::cpu::RZ_ISA
