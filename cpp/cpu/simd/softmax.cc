// Softmax cross entropy of one row of float32 logits.
#include <math.h>

#include "cpu/simd/table.h"
#include "cpu/simd/vec.h"

namespace rz::cpu::RZ_ISA {

template <class T>
static double cross_entropy_row(void* d_, float* row, int64_t n, int64_t label, float scale) {
  float top = row[0];
#pragma omp simd reduction(max : top)
  for (int64_t i = 0; i < n; ++i) top = maxf(row[i], top);
  float target = row[label];
  // Blocks of 4096 are summed on their own: a vocabulary has 10⁵ words, a float 24 bits.
  double sum = 0;
  constexpr int64_t kBlock = 4096;
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

void add_softmax(Table& t) { RZ_ENTRY(t, cross_entropy_row); }

}  // namespace rz::cpu::RZ_ISA
