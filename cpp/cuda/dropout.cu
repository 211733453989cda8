// Dropout: a thread draws a Philox block, which is four neighbouring columns of the whole.
#include "cuda/grid.h"
#include "cuda/launch.h"
#include "cuda/philox.h"
#include "cuda/vec.h"
#include "ops/dropout.h"

namespace rz::cuda {
namespace {

constexpr int kThreads = 256, kBlock = 4;

template <class T>
__global__ void drop(T* y, const T* x, const int64_t* rows, int64_t row_count, int64_t columns, int64_t first_column, float p, float scale,
                     uint64_t seed, uint64_t key) {
  const int64_t first_block = first_column / kBlock, blocks = (first_column + columns - 1) / kBlock - first_block + 1;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < row_count * blocks; i += stride) {
    const int64_t row = i / blocks, block = first_block + i - row * blocks;
    const uint64_t counter = (static_cast<uint64_t>(rows[row]) << (kDropoutColumnBits - 2)) + static_cast<uint64_t>(block);
    const Words w = philox_block(seed, key, counter);
    const float draws[kBlock] = {uniform_of(w.c0), uniform_of(w.c1), uniform_of(w.c2), uniform_of(w.c3)};
    const int64_t column = block * kBlock - first_column;
#pragma unroll
    for (int j = 0; j < kBlock; ++j)
      if (column + j >= 0 && column + j < columns) {
        const int64_t at = row * columns + column + j;
        y[at] = narrow<T>(draws[j] < p ? 0.0f : widen(x[at]) * scale);
      }
  }
}

}  // namespace

void run(const Dropout& op, CudaStream& stream) {
  if (op.x.numel == 0) return;
  const int64_t blocks = (op.first_column + op.columns - 1) / kBlock - op.first_column / kBlock + 1;
  with_floating(op.x.dtype, [&](auto t) {
    using T = decltype(t);
    launch(drop<T>, blocks_for(op.rows.numel * blocks, kThreads, stream), kThreads, 0, stream, op.y.as<T>(), op.x.as<T>(), op.rows.as<int64_t>(),
           op.rows.numel, op.columns, op.first_column, op.p, op.scale(), op.seed, op.key.hash);
  });
}

}  // namespace rz::cuda
