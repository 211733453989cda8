// Attention on the copy engine and the warpgroup products of sm_90a: a producer warp keeps tiles flying into shared memory,
// consumer warpgroups of 64 rows each multiply them.
#pragma once
#include "cuda/attention.h"
#include "cuda/attention_mma.h"
#include "cuda/hopper.h"

namespace rz::cuda {

class CudaStream;

// Whether the kernels can run here, the sizes suit them (head_dim 64, 96 or 128), and a trial has shown that they are right;
// where KernelChoices name others, never, and where they name these, without a trial.
bool suits_hopper(const AttentionShape& shape, DType dtype, int64_t k_rows, CudaStream& stream);
AttentionShape shape_of(const AttentionForward& op);
AttentionShape shape_of(const AttentionBackward& op);
// delta (heads, rows): Σ do ∘ o of each row.
void attention_delta(const AttentionBackward& op, float* delta, CudaStream& stream);
void run_hopper(const AttentionForward& op, const AttentionShape& shape, CudaStream& stream);
void run_hopper(const AttentionBackward& op, const AttentionShape& shape, const float* delta, CudaStream& stream);

// ---- tiles ----

constexpr int kTileRows = 64;  // of a consumer, and of what is copied at once

// Rows of kDim 16-bit values as the copy engine lays them out and as wgmma reads them: slabs of columns, each with its rows one
// after the other.
template <int kRows, int kDim>
struct HopperTile {
  static constexpr Swizzle kSwizzle = kDim % 64 == 0 ? Swizzle::Bytes128 : Swizzle::Bytes64;
  static constexpr int kSlabColumns = kDim % 64 == 0 ? 64 : 32, kRow = kSlabColumns * 2, kSlab = kRows * kRow;
  static constexpr int kCount = kRows, kBytes = kRows * kDim * 2;
  static_assert(kDim % kSlabColumns == 0 && kRows % kTileRows == 0);
  SharedAddress begin;

  // Rows are summed along their columns: the operand of 16 of these.
  __device__ __forceinline__ uint64_t columns(int step) const {
    constexpr int kSteps = kSlabColumns / 16;  // in a slab
    return descriptor(step / kSteps * kSlab + step % kSteps * 32, 16);
  }
  // Columns are summed along the rows: the operand of 16 of these.
  __device__ __forceinline__ uint64_t rows(int step) const { return descriptor(step * 16 * kRow, kDim > kSlabColumns ? kSlab : 0); }

  // The rows of `map` from `row` on, of one head.
  __device__ __forceinline__ void copy(const TensorMap& map, SharedAddress barrier, int head, int row) const {
#pragma unroll
    for (int slab = 0; slab < kDim / kSlabColumns; ++slab)
#pragma unroll
      for (int r = 0; r < kRows; r += kTileRows)
        copy_box(begin + static_cast<SharedAddress>(slab * kSlab + r * kRow), map, barrier, slab * kSlabColumns, head, row + r);
  }

  // Rows from `first` on become zeros, by a warpgroup; others may do the same.
  __device__ __forceinline__ void clear_rows(int first) const {
    constexpr int kPieces = kRow / 16;
    for (int i = first * kPieces + static_cast<int>(threadIdx.x) % kWarpgroup; i < kRows * kPieces; i += kWarpgroup)
#pragma unroll
      for (int slab = 0; slab < kDim / kSlabColumns; ++slab) store_zeros(begin + static_cast<SharedAddress>(slab * kSlab + i * 16));
  }

 private:
  __device__ __forceinline__ uint64_t descriptor(int offset, int leading) const {
    constexpr uint32_t kSwizzleBits = kSwizzle == Swizzle::Bytes128 ? 1 : 2, kStride = 8 * kRow;
    constexpr uint32_t kHigh = kStride >> 4 | kSwizzleBits << 30;
    // One addition for each of a tile's operands.
    const uint32_t low = ((static_cast<uint32_t>(begin) & 0x3ffff) >> 4 | static_cast<uint32_t>(leading >> 4) << 16) + static_cast<uint32_t>(offset >> 4);
    return static_cast<uint64_t>(kHigh) << 32 | low;
  }
};

// Tensors (rows, heads, dim) as tiles are copied from them.
template <int kDim>
TensorMap tile_map(const View& tensor, int64_t rows, int64_t heads) {
  using Tile = HopperTile<kTileRows, kDim>;
  return tensor_map(tensor.data, tensor.dtype, rows, heads, kDim, Tile::kSlabColumns, kTileRows, Tile::kSwizzle);
}

// s = a bᵀ, of 64 rows of a and all of b.
template <class T, int kRows, int kDim, int N>
__device__ __forceinline__ void hopper_scores(float (&s)[1][N][4], const HopperTile<kTileRows, kDim>& a, const HopperTile<kRows, kDim>& b) {
  static_assert(N * 8 == kRows);
#pragma unroll
  for (int step = 0; step < kDim / 16; ++step) wgmma<T, false>(s[0], a.columns(step), b.columns(step), step > 0);
  wgmma_commit();
}

// c += p b, of 64 rows of p.
template <class T, int kRows, int kDim, int P, int D>
__device__ __forceinline__ void hopper_accumulate(float (&c)[1][D][4], const uint32_t (&p)[P][4], const HopperTile<kRows, kDim>& b) {
  static_assert(P * 16 == kRows && D * 8 == kDim);
#pragma unroll
  for (int step = 0; step < P; ++step) wgmma<T, true>(c[0], p[step], b.rows(step), true);
  wgmma_commit();
}

// Accumulators as a left operand.
template <class T, int N>
__device__ __forceinline__ void pack_left(uint32_t (&p)[N / 2][4], const float (&s)[1][N][4]) {
#pragma unroll
  for (int step = 0; step < N / 2; ++step)
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      const float* pair = s[0][step * 2 + w / 2] + w % 2 * 2;
      p[step][w] = pack<T>(pair[0], pair[1]);
    }
}

// ---- consumers ----

// The barrier of a consumer warpgroup.
__device__ __forceinline__ void sync_consumer(int consumer) { sync_threads_of(1 + consumer, kWarpgroup); }

// Rows behind the last of a sequence are those of the next, or were never written: a probability of zero would not make zero of
// what is no number there. `rows`: how many there are from the beginning of the tiles.
template <class... Tiles>
__device__ __forceinline__ void clear_behind(int consumer, int rows, const Tiles&... tiles) {
  constexpr int kRows = std::min({Tiles::kCount...});
  if (rows >= kRows) return;
  (tiles.clear_rows(rows), ...);
  shared_written();
  sync_consumer(consumer);
}

// ---- the ring of tiles ----
// Consumers wait without a limit. So the producer stays until they have released everything: then it sees a wait that does not
// end, theirs or its own.

// Tile n is in stage n % kStages. Full: the producer's copies (and stores) are there. Empty: all consumer warps are done with it.
template <int kStages>
struct TileRing {
  static constexpr int kBytes = 2 * kStages * 8;
  SharedAddress begin;

  __device__ __forceinline__ SharedAddress full(int n) const { return begin + static_cast<SharedAddress>(n % kStages * 8); }
  __device__ __forceinline__ SharedAddress empty(int n) const { return begin + static_cast<SharedAddress>((kStages + n % kStages) * 8); }
  __device__ __forceinline__ void init(int producer_threads, int consumer_warps) const {
    for (int stage = 0; stage < kStages; ++stage) barrier_init(full(stage), producer_threads), barrier_init(empty(stage), consumer_warps);
  }
  __device__ __forceinline__ void wait_full(int n) const { barrier_wait(full(n), n / kStages & 1); }
  // By the producer, which is where a wait that does not end is seen, within `limit` ns.
  __device__ __forceinline__ void wait_empty(int n, uint64_t limit) const { barrier_watch(empty(n), ~(n / kStages) & 1, limit); }
  // Until all of `tiles` were released.
  __device__ __forceinline__ void drain(int tiles, uint64_t limit) const {
    for (int n = tiles; n < tiles + kStages; ++n) wait_empty(n, limit);
  }
  // By every consumer warp, of which no lane may still be waiting for the tile.
  __device__ __forceinline__ void release(int n) const {
    __syncwarp();
    if (threadIdx.x % kWarp == 0) barrier_arrive(empty(n));
  }
};

// How long a producer waits, in ns.
uint64_t barrier_limit(CudaStream& stream);

// Registers a thread of the producer and of `consumers` warpgroups has: together what __launch_bounds__ gives all of them.
template <int kConsumers>
constexpr int kProducerRegisters = kConsumers == 2 ? 24 : 32;
template <int kConsumers>
constexpr int kConsumerRegisters = kConsumers == 2 ? 240 : 160;

}  // namespace rz::cuda
