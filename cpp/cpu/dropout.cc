#include "ops/dropout.h"

#include <algorithm>

#include "cpu/parallel.h"
#include "cpu/simd.h"

namespace rz::cpu {

void run(const Dropout& op) {
  constexpr int64_t kChunk = 1024;  // columns whose draws are at hand
  const auto* rows = op.rows.as<int64_t>();
  const float scale = op.scale();
  auto kernel = simd().drop[index_of(op.x.dtype)];
  parallel_for(op.rows.numel, std::max<int64_t>(1, kChunk / std::max<int64_t>(1, op.columns)), [&](int64_t begin, int64_t end) {
    float draws[kChunk];
    for (int64_t r = begin; r < end; ++r)
      for (int64_t c = 0; c < op.columns; c += kChunk) {
        const int64_t n = std::min(kChunk, op.columns - c), at_element = r * op.columns + c;
        const uint64_t first = (static_cast<uint64_t>(rows[r]) << kDropoutColumnBits) + static_cast<uint64_t>(op.first_column + c);
        simd().uniform(draws, n, op.seed, op.key.hash, first, 0.0f, 1.0f);
        kernel(at(op.y, at_element), at(op.x, at_element), draws, n, op.p, scale);
      }
  });
}

}  // namespace rz::cpu
