// Casts, sums, scaling and plain reductions over flat ranges. y may be an operand (same address), never overlap it
// otherwise.
#include "cpu/simd/table.h"
#include "cpu/simd/vec.h"

namespace rz::cpu::RZ_ISA {

template <class T>
static void to_f32(float* y, const void* x_, int64_t n) {
  auto x = static_cast<const T*>(x_);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) y[i] = load(x[i]);
}

template <class T>
static void from_f32(void* y_, const float* x, int64_t n) {
  auto y = static_cast<T*>(y_);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) store(y[i], x[i]);
}

template <class T>
static void add(void* y_, const void* a_, const void* b_, int64_t n) {
  auto y = static_cast<T*>(y_);
  auto a = static_cast<const T*>(a_), b = static_cast<const T*>(b_);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) store(y[i], load(a[i]) + load(b[i]));
}

template <class T>
static void add_to_f32(float* y, const float* a, const void* b_, int64_t n) {
  auto b = static_cast<const T*>(b_);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) y[i] = a[i] + load(b[i]);
}

template <class T>
static void scale(void* y_, const void* x_, float factor, int64_t n) {
  auto y = static_cast<T*>(y_);
  auto x = static_cast<const T*>(x_);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) store(y[i], load(x[i]) * factor);
}

template <class T>
static void scale_add(void* y_, const void* x_, float factor, int64_t n) {
  auto y = static_cast<T*>(y_);
  auto x = static_cast<const T*>(x_);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) store(y[i], load(y[i]) + load(x[i]) * factor);
}

template <class T>
static void drop(void* y_, const void* x_, const float* draws, int64_t n, float p, float factor) {
  auto y = static_cast<T*>(y_);
  auto x = static_cast<const T*>(x_);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) store(y[i], draws[i] < p ? 0.0f : load(x[i]) * factor);
}

template <class T>
static double sum_squares(const void* x_, int64_t n) {
  auto x = static_cast<const T*>(x_);
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) {
    double v = load(x[i]);
    sum += v * v;
  }
  return sum;
}

// Blocks of 32 rows are summed on their own first: the error grows with rows / 32.
template <class T>
static void column_sums(float* sums, const void* x_, int64_t stride, int64_t rows, int64_t columns) {
  auto x = static_cast<const T*>(x_);
  constexpr int64_t kRows = 32, kColumns = 128;
  for (int64_t c = 0; c < columns; c += kColumns) {
    int64_t width = min64(kColumns, columns - c);
    for (int64_t r = 0; r < rows; r += kRows) {
      float block[kColumns] = {};
      int64_t end = min64(rows, r + kRows);
      for (int64_t i = r; i < end; ++i) {
        const T* row = x + i * stride + c;
#pragma omp simd
        for (int64_t j = 0; j < width; ++j) block[j] += load(row[j]);
      }
#pragma omp simd
      for (int64_t j = 0; j < width; ++j) sums[c + j] += block[j];
    }
  }
}

void add_elementwise(Table& t) {
  RZ_ENTRY(t, to_f32);
  RZ_ENTRY(t, from_f32);
  RZ_ENTRY(t, add);
  RZ_ENTRY(t, add_to_f32);
  RZ_ENTRY(t, scale);
  RZ_ENTRY(t, scale_add);
  RZ_ENTRY(t, drop);
  RZ_ENTRY(t, sum_squares);
  RZ_ENTRY(t, column_sums);
}

}  // namespace rz::cpu::RZ_ISA
