#include "ops/rope.h"

#include <cmath>

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

}  // namespace rz::cpu
