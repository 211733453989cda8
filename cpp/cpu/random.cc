#include "ops/random.h"

#include "cpu/parallel.h"
#include "cpu/simd.h"

namespace rz::cpu {

void run(const RandomFill& op) {
  auto draw = op.normal ? simd().normal : simd().uniform;
  parallel_for(op.x.numel, 1 << 12, [&](int64_t begin, int64_t end) {
    if (op.x.dtype == DType::Float32)
      return draw(op.x.as<float>() + begin, end - begin, op.seed, op.key.hash, static_cast<uint64_t>(op.offset + begin), op.a,
                  op.b);
    constexpr int64_t kTile = 1024;
    float tile[kTile];
    for (int64_t i = begin; i < end; i += kTile) {
      int64_t n = std::min(kTile, end - i);
      draw(tile, n, op.seed, op.key.hash, static_cast<uint64_t>(op.offset + i), op.a, op.b);
      simd().from_f32[index_of(op.x.dtype)](at(op.x, i), tile, n);
    }
  });
}

}  // namespace rz::cpu
