// Small float32 products for tiles that live in cache: C (m×n) (+)= A (m×k) · B (k×n), row-major C and B, A with any
// strides (so Aᵀ needs no copy). n, ldb and ldc are multiples of kLanes: tiles are padded with zeros.
#pragma once
#include "cpu/simd/vec.h"

namespace rz::cpu::RZ_ISA {

struct Strided {
  const float* data;
  int64_t row, column;
};

#if defined(__AVX512F__)
constexpr int kTileRows = 6, kTileVectors = 4;
#else
constexpr int kTileRows = 6, kTileVectors = 2;
#endif

template <int Rows, int Vectors, bool Accumulate>
RZ_INLINE void tile(int64_t k, Strided a, const float* b, int64_t ldb, float* c, int64_t ldc) {
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
      for (int j = 0; j < Vectors; ++j) sum[i][j] += x * row[j];
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < Vectors; ++j) vstore(c + i * ldc + j * kLanes, sum[i][j]);
}

template <int Vectors, bool Accumulate>
static void tile_column(int64_t m, int64_t k, Strided a, const float* b, int64_t ldb, float* c, int64_t ldc) {
  for (; m >= kTileRows; m -= kTileRows, a.data += kTileRows * a.row, c += kTileRows * ldc)
    tile<kTileRows, Vectors, Accumulate>(k, a, b, ldb, c, ldc);
  switch (m) {
    case 5: return tile<5, Vectors, Accumulate>(k, a, b, ldb, c, ldc);
    case 4: return tile<4, Vectors, Accumulate>(k, a, b, ldb, c, ldc);
    case 3: return tile<3, Vectors, Accumulate>(k, a, b, ldb, c, ldc);
    case 2: return tile<2, Vectors, Accumulate>(k, a, b, ldb, c, ldc);
    case 1: return tile<1, Vectors, Accumulate>(k, a, b, ldb, c, ldc);
  }
}

template <bool Accumulate>
static void tile_product(int64_t m, int64_t n, int64_t k, Strided a, const float* b, int64_t ldb, float* c,
                         int64_t ldc) {
  int64_t j = 0;
  for (; j + kTileVectors * kLanes <= n; j += kTileVectors * kLanes)
    tile_column<kTileVectors, Accumulate>(m, k, a, b + j, ldb, c + j, ldc);
  if constexpr (kTileVectors == 4) {
    if (j + 2 * kLanes <= n) {
      tile_column<2, Accumulate>(m, k, a, b + j, ldb, c + j, ldc);
      j += 2 * kLanes;
    }
  }
  if (j < n) tile_column<1, Accumulate>(m, k, a, b + j, ldb, c + j, ldc);
}

}  // namespace rz::cpu::RZ_ISA
