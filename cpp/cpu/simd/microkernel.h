// Small products for tiles that live in cache: C (m×n, float32) (+)= A (m×k) · B (k×n). Operands are 32-bit words: one
// float32, or two bfloat16 that are neighbours along k (then k counts pairs). A has any strides, so Aᵀ needs no copy;
// rows of B and C are contiguous. n is a multiple of kLanes: tiles are padded with zeros.
#pragma once
#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

#include "cpu/simd/vec.h"

namespace rz::cpu::RZ_ISA {

struct Words {
  const float* data;
  int64_t row, column;
};

struct Float32Product {
  RZ_INLINE vf multiply_add(vf sum, vf a, vf b) { return sum + a * b; }
};
#if defined(__AVX512BF16__)
struct BFloat16Product {
  RZ_INLINE vf multiply_add(vf sum, vf a, vf b) {
    return (vf)_mm512_dpbf16_ps((__m512)sum, (__m512bh)(__m512i)a, (__m512bh)(__m512i)b);
  }
};
#endif

// Rows and vectors of C that are held in registers: 32 of them, or 16.
#if defined(__AVX512F__)
constexpr int kTileRows = 6, kTileVectors = 4;
#else
constexpr int kTileRows = 6, kTileVectors = 2;
#endif

template <class Product, int Rows, int Vectors, bool Accumulate>
RZ_INLINE void tile(int64_t k, Words a, const float* b, int64_t ldb, float* c, int64_t ldc) {
  vf sum[Rows][Vectors];
#pragma GCC unroll 8
  for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < Vectors; ++j) sum[i][j] = Accumulate ? vload(c + i * ldc + j * kLanes) : vf{};
  for (int64_t p = 0; p < k; ++p) {
    vf row[Vectors];
#pragma GCC unroll 8
    for (int j = 0; j < Vectors; ++j) row[j] = vload(b + p * ldb + j * kLanes);
#pragma GCC unroll 8
    for (int i = 0; i < Rows; ++i) {
      vf x = splat(a.data[i * a.row + p * a.column]);
#pragma GCC unroll 8
      for (int j = 0; j < Vectors; ++j) sum[i][j] = Product::multiply_add(sum[i][j], x, row[j]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < Vectors; ++j) vstore(c + i * ldc + j * kLanes, sum[i][j]);
}

template <class Product, int Rows, bool Accumulate>
static void tile_row(int64_t n, int64_t k, Words a, const float* b, int64_t ldb, float* c, int64_t ldc) {
  for (; n >= kTileVectors * kLanes; n -= kTileVectors * kLanes, b += kTileVectors * kLanes, c += kTileVectors * kLanes)
    tile<Product, Rows, kTileVectors, Accumulate>(k, a, b, ldb, c, ldc);
  if constexpr (kTileVectors == 4) {
    if (n == 3 * kLanes) return tile<Product, Rows, 3, Accumulate>(k, a, b, ldb, c, ldc);
    if (n == 2 * kLanes) return tile<Product, Rows, 2, Accumulate>(k, a, b, ldb, c, ldc);
  }
  if (n == kLanes) tile<Product, Rows, 1, Accumulate>(k, a, b, ldb, c, ldc);
}

// At most kTileRows rows.
template <class Product, bool Accumulate>
RZ_INLINE void tile_rows(int64_t m, int64_t n, int64_t k, Words a, const float* b, int64_t ldb, float* c, int64_t ldc) {
  switch (m) {
    case 6: return tile_row<Product, 6, Accumulate>(n, k, a, b, ldb, c, ldc);
    case 5: return tile_row<Product, 5, Accumulate>(n, k, a, b, ldb, c, ldc);
    case 4: return tile_row<Product, 4, Accumulate>(n, k, a, b, ldb, c, ldc);
    case 3: return tile_row<Product, 3, Accumulate>(n, k, a, b, ldb, c, ldc);
    case 2: return tile_row<Product, 2, Accumulate>(n, k, a, b, ldb, c, ldc);
    case 1: return tile_row<Product, 1, Accumulate>(n, k, a, b, ldb, c, ldc);
  }
}

}  // namespace rz::cpu::RZ_ISA
