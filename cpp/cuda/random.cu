// Uniform and normal draws: a thread makes the four values of a Philox block. The bits are those of the CPU; so this file is
// compiled without fused multiply-add.
#include "core/normal.h"
#include "cuda/grid.h"
#include "cuda/launch.h"
#include "cuda/philox.h"
#include "cuda/vec.h"
#include "ops/random.h"

namespace rz::cuda {

constexpr int kThreads = 256, kBlock = 4;

// Element i of x is element offset + i of the stream of values, which comes in blocks of four.
template <class T, bool kNormal>
static __global__ void draw(T* x, int64_t numel, uint64_t seed, uint64_t key, int64_t offset, float shift, float factor) {
  const int64_t first_block = offset / kBlock, last_block = (offset + numel - 1) / kBlock;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t b = first_block + static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; b <= last_block; b += stride) {
    const Words w = philox_block(seed, key, static_cast<uint64_t>(b));
    float v[kBlock];
    if constexpr (kNormal) {
      philox::normal_pair(w.c0, w.c1, v[0], v[1]);
      philox::normal_pair(w.c2, w.c3, v[2], v[3]);
    } else {
      v[0] = uniform_of(w.c0), v[1] = uniform_of(w.c1), v[2] = uniform_of(w.c2), v[3] = uniform_of(w.c3);
    }
    const int64_t at = b * kBlock - offset;
#pragma unroll
    for (int i = 0; i < kBlock; ++i)
      if (at + i >= 0 && at + i < numel) x[at + i] = narrow<T>(shift + factor * v[i]);
  }
}

void run(const RandomFill& op, CudaStream& stream) {
  if (op.x.numel == 0) return;
  const int64_t blocks = (op.offset + op.x.numel - 1) / kBlock - op.offset / kBlock + 1;
  const float factor = op.normal ? op.b : op.b - op.a;
  with_floating(op.x.dtype, [&](auto t) {
    using T = decltype(t);
    launch(op.normal ? draw<T, true> : draw<T, false>, blocks_for(blocks, kThreads, stream), kThreads, 0, stream, op.x.as<T>(), op.x.numel,
           op.seed, op.key.hash, op.offset, op.a, factor);
  });
}

}  // namespace rz::cuda
