// Packing of attention's operands into the words of microkernel.h. "Along": the product sums along a row; "across": it
// sums down the rows; "transposed": along a row, stored column by column.
#pragma once
#include "cpu/simd/microkernel.h"

namespace rz::cpu::RZ_ISA {

constexpr int64_t kKeys = 64;  // keys of a block: the row length of transposed tiles and of tiles of scores

template <int Step>
RZ_INLINE void transpose_step(vf* t) {
#if defined(__clang__)
  for (int i = 0; i < kLanes; ++i)
    for (int l = 0; l < kLanes; ++l)
      if (!(i & Step) && (l & Step)) {
        float x = t[i][l];
        t[i][l] = t[i + Step][l - Step];
        t[i + Step][l - Step] = x;
      }
#else
  vi low, high;
  for (int l = 0; l < kLanes; ++l) {
    low[l] = l & Step ? kLanes + l - Step : l;
    high[l] = l & Step ? kLanes + l : l + Step;
  }
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i)
    if (!(i & Step)) {
      vf a = t[i], b = t[i + Step];
      t[i] = __builtin_shuffle(a, b, low);
      t[i + Step] = __builtin_shuffle(a, b, high);
    }
#endif
  if constexpr (2 * Step < kLanes) transpose_step<2 * Step>(t);
}

// Every dtype, as float32: one element a word.
template <class T>
struct Float32Words {
  using Product = Float32Product;
  static constexpr int64_t kStep = 1;  // elements a word

  RZ_INLINE void along(float* to, int64_t ld, const T* from, int64_t stride, int64_t rows, int64_t dim) {
    across(to, ld, from, stride, rows, dim);
  }
  RZ_INLINE void across(float* to, int64_t ld, const T* from, int64_t stride, int64_t rows, int64_t dim) {
    for (int64_t r = 0; r < rows; ++r, from += stride, to += ld) {
      int64_t i = 0;
      for (; i + kLanes <= dim; i += kLanes) vstore(to + i, vget(from + i));
      if (i < dim) vstore(to + i, vget_part(from + i, dim - i));
    }
  }
  RZ_INLINE vf words(const T* from, int64_t n) { return n >= kLanes ? vget(from) : vget_part(from, n); }

  // Tiles of probabilities: rows stay as they are.
  RZ_INLINE const float* row_words(float*, const float* p, int64_t, int64_t) { return p; }
  RZ_INLINE const float* column_words(float*, const float* p, int64_t) { return p; }
};

#if defined(__AVX512BF16__)
// bfloat16 as it is: two elements a word.
struct BFloat16Words {
  using Product = BFloat16Product;
  static constexpr int64_t kStep = 2;

  RZ_INLINE void along(float* to, int64_t ld, const bf16* from, int64_t stride, int64_t rows, int64_t dim) {
    for (int64_t r = 0; r < rows; ++r, from += stride, to += ld)
      for (int64_t i = 0; i < dim; i += 2 * kLanes) vstore(to + i / 2, words(from + i, dim - i));
  }
  RZ_INLINE vu widen(__m256i x) { return __builtin_convertvector((vh)x, vu); }
  RZ_INLINE vu halves(const bf16* from, int64_t n) {
    if (n >= kLanes) return __builtin_convertvector(*reinterpret_cast<const vh_any*>(from), vu);
    return widen(_mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << n) - 1), from));
  }
  RZ_INLINE void across(float* to, int64_t ld, const bf16* from, int64_t stride, int64_t rows, int64_t dim) {
    for (int64_t r = 0; r < rows; r += 2, from += 2 * stride, to += ld)
      for (int64_t i = 0; i < dim; i += kLanes) {
        vu low = halves(from + i, dim - i), high = r + 1 < rows ? halves(from + stride + i, dim - i) : vu{};
        vstore(to + i, (vf)(low | high << 16));
      }
  }
  RZ_INLINE vf words(const bf16* from, int64_t n) {
    if (n >= 2 * kLanes) return vload(reinterpret_cast<const float*>(from));
    return (vf)_mm512_maskz_loadu_epi16(static_cast<__mmask32>((uint64_t{1} << n) - 1), from);
  }
  // n probabilities of each row, for sums over keys.
  RZ_INLINE const float* row_words(float* to, const float* p, int64_t rows, int64_t n) {
    for (int64_t r = 0; r < rows; ++r, p += kKeys)
      for (int64_t i = 0; i < n; i += 2 * kLanes) {
        __m512 low = (__m512)vload(p + i), high = i + kLanes < n ? (__m512)vload(p + i + kLanes) : __m512{};
        vstore(to + r * kKeys + i / 2, (vf)(__m512i)_mm512_cvtne2ps_pbh(high, low));
      }
    return to;
  }
  // Rows of kKeys probabilities, for sums over queries.
  RZ_INLINE const float* column_words(float* to, const float* p, int64_t rows) {
    for (int64_t r = 0; r < rows; r += 2)
      for (int64_t i = 0; i < kKeys; i += kLanes) {
        __m512 first = (__m512)vload(p + r * kKeys + i);
        __m512 second = r + 1 < rows ? (__m512)vload(p + (r + 1) * kKeys + i) : __m512{};
        vu low = widen((__m256i)_mm512_cvtneps_pbh(first));
        vu high = widen((__m256i)_mm512_cvtneps_pbh(second));
        vstore(to + r / 2 * kKeys + i, (vf)(low | high << 16));
      }
    return to;
  }
};
#endif

// to (words of dim, kKeys), for `rows` keys; columns are written up to the next multiple of kLanes, zero past the rows.
template <class W, class T>
static void pack_transposed(float* to, const T* from, int64_t stride, int64_t rows, int64_t dim) {
  for (int64_t i = 0; i < dim; i += W::kStep * kLanes) {
    int64_t width = min64(kLanes, (dim - i + W::kStep - 1) / W::kStep);
    for (int64_t r = 0; r < rows; r += kLanes) {
      vf t[kLanes];
      for (int64_t y = 0; y < kLanes; ++y) t[y] = r + y < rows ? W::words(from + (r + y) * stride + i, dim - i) : vf{};
      transpose_step<1>(t);
      for (int64_t x = 0; x < width; ++x) vstore(to + (i / W::kStep + x) * kKeys + r, t[x]);
    }
  }
}

}  // namespace rz::cpu::RZ_ISA
