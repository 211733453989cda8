// Elements of quantised weights. Compiled without fused multiply-adds: the bits are bitsandbytes' own.
#include "cpu/simd/table.h"
#include "cpu/simd/vec.h"
#include "ops/nf4.h"

namespace rz::cpu::RZ_ISA {

namespace {

// Both elements of a byte: one load for two.
struct Pair {
  float values[2];
};
struct Pairs {
  Pair of[256];
};
constexpr Pairs make_pairs() {
  Pairs pairs{};
  for (int byte = 0; byte < 256; ++byte) pairs.of[byte] = {{kNf4[byte >> 4], kNf4[byte & 15]}};
  return pairs;
}
constexpr Pairs kPairs = make_pairs();

constexpr int64_t kChunk = 256;  // elements, even

float absmax_of(const float* x, int64_t n) {
  float top = 0;
#pragma omp simd reduction(max : top)
  for (int64_t i = 0; i < n; ++i) top = maxf(top, __builtin_fabsf(x[i]));
  return top;
}

void quantize_nf4(uint8_t* codes, float* absmax, const float* x, int64_t n, int64_t block) {
  float middle[15];
  for (int i = 0; i < 15; ++i) middle[i] = (kNf4[i] + kNf4[i + 1]) / 2;
  for (int64_t begin = 0; begin < n; begin += block) {
    const int64_t end = min64(n, begin + block);
    const float top = absmax_of(x + begin, end - begin), inverse = 1.0f / maxf(top, 1e-38f);
    absmax[begin / block] = top;
    for (int64_t at = begin; at < end; at += kChunk) {
      const int64_t count = min64(kChunk, end - at);
      int32_t nearest[kChunk];
#pragma omp simd
      for (int64_t i = 0; i < count; ++i) {
        const float scaled = x[at + i] * inverse;
        int32_t code = 0;
        for (int m = 0; m < 15; ++m) code += scaled > middle[m];
        nearest[i] = code;
      }
      if (count % 2 != 0) nearest[count] = kNf4Zero;
      for (int64_t i = 0; i < count; i += 2) codes[(at + i) / 2] = static_cast<uint8_t>(nearest[i] << 4 | nearest[i + 1]);
    }
  }
}

// y (n) of one piece, before they are multiplied.
RZ_INLINE void look_up(float* y, const uint8_t* codes, int64_t first, int64_t n) {
  int64_t i = 0;
  if (first % 2 != 0 && n > 0) y[i++] = kNf4[codes[first / 2] & 15];
  const uint8_t* bytes = codes + (first + i) / 2;
  for (; i + 1 < n; i += 2) __builtin_memcpy(y + i, &kPairs.of[*bytes++], sizeof(Pair));
  if (i < n) y[i] = kNf4[*bytes >> 4];
}

template <class T>
void dequantize_nf4(void* y_, const uint8_t* codes, int64_t first, int64_t n, int64_t piece, int64_t into, const float* absmax) {
  auto y = static_cast<T*>(y_);
  float values[kChunk];
  for (int64_t i = 0; i < n;) {
    const int64_t left = piece - into, count = min64(kChunk, min64(n - i, left));
    look_up(values, codes, first + i, count);
    const float scale = *absmax;
#pragma omp simd
    for (int64_t j = 0; j < count; ++j) store(y[i + j], values[j] * scale);
    i += count;
    into += count;
    if (into == piece) into = 0, ++absmax;
  }
}

float quantize_int8(int8_t* codes, const float* x, int64_t n) {
  const float top = absmax_of(x, n), scale = top > 0 ? 127.0f / top : 0.0f;
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) codes[i] = static_cast<int8_t>(static_cast<int32_t>(__builtin_rintf(x[i] * scale)));
  return top;
}

template <class T>
void dequantize_int8(void* y_, const int8_t* codes, int64_t n, float absmax) {
  auto y = static_cast<T*>(y_);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) store(y[i], static_cast<float>(codes[i]) * absmax * 7.874015718698502e-3f);
}

}  // namespace

void add_quantize(Table& t) {
  t.quantize_nf4 = quantize_nf4;
  t.quantize_int8 = quantize_int8;
  RZ_ENTRY(t, dequantize_nf4);
  RZ_ENTRY(t, dequantize_int8);
}

}  // namespace rz::cpu::RZ_ISA
