// Half-rotation of the first `rotary` elements of each head, by a table of cos and sin per row.
#include "cpu/simd/table.h"
#include "cpu/simd/vec.h"

namespace rz::cpu::RZ_ISA {

template <class T>
static void rope(void* y_, const void* x_, const float* cos, const float* sin, int64_t rows, int64_t heads,
                 int64_t head_dim, int64_t rotary, bool inverse, float* scratch) {
  auto y = static_cast<T*>(y_);
  auto x = static_cast<const T*>(x_);
  int64_t half = rotary / 2;
  float *c = scratch, *s = scratch + half, sign = inverse ? -1.0f : 1.0f;
  for (int64_t r = 0; r < rows; ++r) {
#pragma omp simd
    for (int64_t i = 0; i < half; ++i) {
      c[i] = rounded<T>(cos[r * half + i]);
      s[i] = sign * rounded<T>(sin[r * half + i]);
    }
    for (int64_t h = 0; h < heads; ++h, x += head_dim, y += head_dim) {
#pragma omp simd
      for (int64_t i = 0; i < half; ++i) {
        float a = load(x[i]), b = load(x[half + i]);
        store(y[i], a * c[i] - b * s[i]);
        store(y[half + i], b * c[i] + a * s[i]);
      }
      if (y != x)
        for (int64_t i = rotary; i < head_dim; ++i) y[i] = x[i];
    }
  }
}

void add_rope(Table& t) { RZ_ENTRY(t, rope); }

}  // namespace rz::cpu::RZ_ISA
