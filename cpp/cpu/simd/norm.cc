// RMSNorm over a block of rows: x̂ = cast(x · rstd), y = x̂ · w.
// Backward: dx = rstd · (dy·w − x̂ · mean(dy·w · x̂)), dw = Σ dy · x̂.
#include "cpu/simd/table.h"
#include "cpu/simd/vec.h"

namespace rz::cpu::RZ_ISA {

template <class T>
static void rms_norm_forward(void* y_, float* rstd, const void* x_, const void* w_, int64_t rows, int64_t dim,
                             float eps) {
  auto w = static_cast<const T*>(w_);
  for (int64_t r = 0; r < rows; ++r) {
    const T* x = static_cast<const T*>(x_) + r * dim;
    T* y = static_cast<T*>(y_) + r * dim;
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < dim; ++i) sum += load(x[i]) * load(x[i]);
    float scale = 1.0f / __builtin_sqrtf(sum / static_cast<float>(dim) + eps);
    rstd[r] = scale;
#pragma omp simd
    for (int64_t i = 0; i < dim; ++i) store(y[i], rounded<T>(load(x[i]) * scale) * load(w[i]));
  }
}

template <class T>
static void rms_norm_backward(void* dx_, float* dw_sums, const void* dy_, const void* x_, const void* w_,
                              const float* rstd, int64_t rows, int64_t dim) {
  auto w = static_cast<const T*>(w_);
  for (int64_t r = 0; r < rows; ++r) {
    const T *dy = static_cast<const T*>(dy_) + r * dim, *x = static_cast<const T*>(x_) + r * dim;
    T* dx = static_cast<T*>(dx_) + r * dim;
    float scale = rstd[r], dot = 0;
    if (dw_sums) {
#pragma omp simd reduction(+ : dot)
      for (int64_t i = 0; i < dim; ++i) {
        float d = load(dy[i]), v = load(x[i]);
        dot += d * load(w[i]) * v;
        dw_sums[i] += d * rounded<T>(v * scale);
      }
    } else {
#pragma omp simd reduction(+ : dot)
      for (int64_t i = 0; i < dim; ++i) dot += load(dy[i]) * load(w[i]) * load(x[i]);
    }
    float along = dot * scale * scale * scale / static_cast<float>(dim);
#pragma omp simd
    for (int64_t i = 0; i < dim; ++i) store(dx[i], load(dy[i]) * load(w[i]) * scale - load(x[i]) * along);
  }
}

void add_norm(Table& t) {
  RZ_ENTRY(t, rms_norm_forward);
  RZ_ENTRY(t, rms_norm_backward);
}

}  // namespace rz::cpu::RZ_ISA
