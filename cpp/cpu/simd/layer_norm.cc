// LayerNorm over a block of rows: x̂ = (x − mean) · rstd, y = x̂ · w + b; the variance from the differences to the mean.
// Backward: dx = rstd · (dy·w − mean(dy·w) − x̂ · mean(dy·w · x̂)), dw = Σ dy · x̂, db = Σ dy.
#include "cpu/simd/table.h"
#include "cpu/simd/vec.h"

namespace rz::cpu::RZ_ISA {

template <class T>
static void layer_norm_forward(void* y_, float* means, float* rstd, const void* x_, const void* w_, const void* b_,
                               int64_t rows, int64_t dim, float eps) {
  auto w = static_cast<const T*>(w_), b = static_cast<const T*>(b_);
  for (int64_t r = 0; r < rows; ++r) {
    const T* x = static_cast<const T*>(x_) + r * dim;
    T* y = static_cast<T*>(y_) + r * dim;
    float sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < dim; ++i) sum += load(x[i]);
    float mean = sum / static_cast<float>(dim);
#pragma omp simd reduction(+ : squares)
    for (int64_t i = 0; i < dim; ++i) squares += (load(x[i]) - mean) * (load(x[i]) - mean);
    float scale = 1.0f / __builtin_sqrtf(squares / static_cast<float>(dim) + eps);
    means[r] = mean;
    rstd[r] = scale;
#pragma omp simd
    for (int64_t i = 0; i < dim; ++i) store(y[i], (load(x[i]) - mean) * scale * load(w[i]) + load(b[i]));
  }
}

template <class T>
static void layer_norm_backward(void* dx_, float* sums, const void* dy_, const void* x_, const void* w_,
                                const float* means, const float* rstd, int64_t rows, int64_t dim) {
  auto w = static_cast<const T*>(w_);
  float *dw = sums, *db = sums + (sums ? dim : 0);
  for (int64_t r = 0; r < rows; ++r) {
    const T *dy = static_cast<const T*>(dy_) + r * dim, *x = static_cast<const T*>(x_) + r * dim;
    T* dx = static_cast<T*>(dx_) + r * dim;
    float mean = means[r], scale = rstd[r], sum = 0, dot = 0;
    if (sums) {
#pragma omp simd reduction(+ : sum, dot)
      for (int64_t i = 0; i < dim; ++i) {
        float d = load(dy[i]), hat = (load(x[i]) - mean) * scale, along = d * load(w[i]);
        sum += along;
        dot += along * hat;
        dw[i] += d * hat;
        db[i] += d;
      }
    } else {
#pragma omp simd reduction(+ : sum, dot)
      for (int64_t i = 0; i < dim; ++i) {
        float along = load(dy[i]) * load(w[i]);
        sum += along;
        dot += along * (load(x[i]) - mean) * scale;
      }
    }
    float shift = sum / static_cast<float>(dim), tilt = dot / static_cast<float>(dim);
#pragma omp simd
    for (int64_t i = 0; i < dim; ++i) {
      float hat = (load(x[i]) - mean) * scale;
      store(dx[i], (load(dy[i]) * load(w[i]) - shift - hat * tilt) * scale);
    }
  }
}

void add_layer_norm(Table& t) {
  RZ_ENTRY(t, layer_norm_forward);
  RZ_ENTRY(t, layer_norm_backward);
}

}  // namespace rz::cpu::RZ_ISA
