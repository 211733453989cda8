// Uniform and normal draws: blocks of four words by Philox, a fixed number of blocks at a time so that they vectorise.
// Compiled without contraction: the bits do not depend on the instruction set.
#include "core/normal.h"
#include "cpu/simd/table.h"
#include "cpu/simd/vec.h"

namespace rz::cpu::RZ_ISA {

constexpr int64_t kBlocks = 64;

struct Uniform {
  RZ_INLINE void map(uint32_t a, uint32_t b, float& x, float& y) {
    x = static_cast<float>(static_cast<int32_t>(a >> 8)) * 0x1p-24f;
    y = static_cast<float>(static_cast<int32_t>(b >> 8)) * 0x1p-24f;
  }
};
struct Normal {
  RZ_INLINE void map(uint32_t a, uint32_t b, float& x, float& y) { philox::normal_pair(a, b, x, y); }
};

template <class Kind>
__attribute__((flatten)) static void draw(float* y, int64_t n, uint64_t seed, uint64_t key, uint64_t first, float shift,
                                          float factor) {
  uint64_t counter = first / 4;
  int64_t skip = static_cast<int64_t>(first % 4);
  for (; n > 0; counter += kBlocks) {
    float values[kBlocks * 4];
#pragma omp simd
    for (int64_t b = 0; b < kBlocks; ++b) {
      uint64_t c = counter + static_cast<uint64_t>(b);
      uint32_t c0 = static_cast<uint32_t>(c), c1 = static_cast<uint32_t>(c >> 32);
      uint32_t c2 = static_cast<uint32_t>(key), c3 = static_cast<uint32_t>(key >> 32);
      uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
#pragma GCC unroll 10
      for (int round = 0; round < 10; ++round) {
        uint64_t p0 = uint64_t{0xD2511F53u} * c0, p1 = uint64_t{0xCD9E8D57u} * c2;
        c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
        c1 = static_cast<uint32_t>(p1);
        c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
        c3 = static_cast<uint32_t>(p0);
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
      }
      float v0, v1, v2, v3;
      Kind::map(c0, c1, v0, v1);
      Kind::map(c2, c3, v2, v3);
      values[4 * b] = shift + factor * v0;
      values[4 * b + 1] = shift + factor * v1;
      values[4 * b + 2] = shift + factor * v2;
      values[4 * b + 3] = shift + factor * v3;
    }
    int64_t count = min64(n, kBlocks * 4 - skip);
    for (int64_t i = 0; i < count; ++i) y[i] = values[skip + i];
    y += count;
    n -= count;
    skip = 0;
  }
}

static void uniform(float* y, int64_t n, uint64_t seed, uint64_t key, uint64_t first, float a, float b) {
  draw<Uniform>(y, n, seed, key, first, a, b - a);
}

static void normal(float* y, int64_t n, uint64_t seed, uint64_t key, uint64_t first, float mean, float std) {
  draw<Normal>(y, n, seed, key, first, mean, std);
}

void add_random(Table& t) {
  t.uniform = uniform;
  t.normal = normal;
}

}  // namespace rz::cpu::RZ_ISA
