#include "ops/rope.h"

#include <cmath>
#include <cstring>

#include "cpu/parallel.h"
#include "cpu/scratch.h"
#include "cpu/simd.h"

namespace rz::cpu {

void run(const RopeTable& op) {
  auto cos = op.cos.as<float>(), sin = op.sin.as<float>(), inv_freq = op.inv_freq.as<float>();
  auto positions = op.positions.as<int64_t>();
  parallel_for(op.rows, 32, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r)
      for (int64_t i = 0; i < op.half; ++i) {
        double angle = static_cast<float>(positions[r]) * inv_freq[i];  // the product is rounded to float32
        cos[r * op.half + i] = static_cast<float>(std::cos(angle)) * op.attention_factor;
        sin[r * op.half + i] = static_cast<float>(std::sin(angle)) * op.attention_factor;
      }
  });
}

void run(const Rope& op) {
  int64_t width = op.heads * op.head_dim, half = op.rotary / 2;
  parallel_for(op.rows, std::max<int64_t>(1, (1 << 14) / std::max<int64_t>(1, width)), [&](int64_t r, int64_t end) {
    Scratch scratch(op.rotary * 4);
    simd().rope[index_of(op.x.dtype)](at(op.y, r * width), at(op.x, r * width), op.cos.as<float>() + r * half,
                                      op.sin.as<float>() + r * half, end - r, op.heads, op.head_dim, op.rotary,
                                      op.inverse, scratch.as());
  });
}

// Queries and keys of each row are turned from `qkv` to their own tensors, or back; values are copied.
template <bool kSplit, class Op>
static void turn_parts(const Op& op) {
  const int64_t half = op.rotary / 2, size = size_of(op.qkv.dtype);
  const int64_t wide = op.heads * op.head_dim, narrow = op.kv_heads * op.head_dim, width = wide + 2 * narrow;
  const auto turn = simd().rope[index_of(op.qkv.dtype)];
  parallel_for(op.rows, std::max<int64_t>(1, (1 << 14) / std::max<int64_t>(1, width)), [&](int64_t r, int64_t end) {
    Scratch scratch(op.rotary * 4);
    for (; r < end; ++r) {
      const float *cos = op.cos.template as<float>() + r * half, *sin = op.sin.template as<float>() + r * half;
      char* fused = at(op.qkv, r * width);
      const auto each = [&](const View& part, int64_t heads, int64_t offset) {
        char *own = at(part, r * heads * op.head_dim), *packed = fused + offset * size;
        turn(kSplit ? own : packed, kSplit ? packed : own, cos, sin, 1, heads, op.head_dim, op.rotary, !kSplit,
             scratch.as());
      };
      each(op.q, op.heads, 0);
      each(op.k, op.kv_heads, wide);
      char *own = at(op.v, r * narrow), *packed = fused + (wide + narrow) * size;
      std::memcpy(kSplit ? own : packed, kSplit ? packed : own, static_cast<size_t>(narrow * size));
    }
  });
}

void run(const SplitRope& op) { turn_parts<true>(op); }
void run(const MergeRope& op) { turn_parts<false>(op); }

}  // namespace rz::cpu
