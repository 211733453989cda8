// Embedding. The gradient of a token belongs to the block of the row where it comes first, which adds the token's rows in order
// without atomics: every block looks through the ids, rows² / 2 reads of 8 bytes from the second-level cache at most, and a
// token that came before ends the search. 8192 rows: 0.27 GB; 65536 rows: 17 GB.
#include "ops/embedding.h"

#include <bit>

#include "cuda/launch.h"
#include "cuda/row_grid.h"
#include "cuda/units.h"

namespace rz::cuda {

template <class Unit>
static __global__ void embedding_forward(Unit* out, const int64_t* ids, const Unit* table, int64_t rows, int64_t vocab, int units,
                                         int64_t first) {
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y; row < rows; row += static_cast<int64_t>(gridDim.x) * blockDim.y) {
    const int64_t id = ids[row] - first;
    const bool here = id >= 0 && id < vocab;
    for (int i = static_cast<int>(threadIdx.x); i < units; i += static_cast<int>(blockDim.x))
      out[row * units + i] = here ? table[id * units + i] : Unit{};
  }
}

void run(const EmbeddingForward& op, CudaStream& stream) {
  const int64_t bytes = op.dim * size_of(op.table.dtype);
  with_unit({op.out.data, op.table.data}, bytes, [&](auto unit) {
    using Unit = decltype(unit);
    const int64_t units = bytes / static_cast<int64_t>(sizeof(Unit));
    const RowGrid shape(op.rows, units, stream);
    launch(embedding_forward<Unit>, shape.grid, shape.block, 0, stream, op.out.as<Unit>(), op.ids.as<int64_t>(), op.table.as<Unit>(), op.rows,
           op.vocab, units, op.first);
  });
}

constexpr int kThreads = 256, kWarps = kThreads / kWarp;
constexpr int kIdsEach = 4, kTile = kThreads * kIdsEach;  // ids that a block looks at between two barriers
constexpr int kRowsAtOnce = 4;                            // rows whose loads are under way together

// Block (row, part of the columns). 16-bit sums are rounded once.
template <class D, class T>
static __global__ void embedding_backward(D* d_table, const int64_t* ids, const T* d_out, int64_t rows, int64_t vocab, int64_t dim, int64_t first,
                                          bool accumulate, bool table_aligned, bool out_aligned) {
  RZ_SHARED(unsigned, found, 2 * kWarps * kIdsEach);  // a bit for each id of the tile; of this tile and of the next
  RZ_SHARED(int64_t, same, kTile);                    // rows of the token in this tile
  const int64_t own = blockIdx.x, id = ids[own];
  if (id < first || id - first >= vocab) return;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarp, lane = thread % kWarp;
  const int64_t column = (static_cast<int64_t>(blockIdx.y) * kThreads + thread) * kGroup, count = dim - column;
  D* to = d_table + (id - first) * dim + column;
  float sum[kGroup];
  if (accumulate) load_group(sum, to, count, table_aligned);
  else
    for (float& s : sum) s = 0;
  bool owner = false;
  int buffer = 0;
  for (int64_t tile = 0; tile < rows; tile += kTile) {
    unsigned* words = found + buffer * kWarps * kIdsEach;
    buffer ^= 1;
    bool mine[kIdsEach];
#pragma unroll
    for (int k = 0; k < kIdsEach; ++k) {
      const int64_t r = tile + k * kThreads + thread;
      mine[k] = r < rows && ids[r] == id;
      const unsigned bits = __ballot_sync(kFullMask, mine[k]);
      if (lane == 0) words[k * kWarps + warp] = bits;
    }
    __syncthreads();
    int total = 0, before[kIdsEach] = {};
#pragma unroll
    for (int w = 0; w < kWarps * kIdsEach; ++w) {
      const unsigned bits = words[w];
      if (!owner && bits != 0) {  // the first row of the token
        if (tile + w * kWarp + std::countr_zero(bits) != own) return;
        owner = true;
      }
#pragma unroll
      for (int k = 0; k < kIdsEach; ++k)
        if (w == k * kWarps + warp) before[k] = total + std::popcount(bits & ((1u << lane) - 1));
      total += std::popcount(bits);
    }
    if (total == 0) continue;
#pragma unroll
    for (int k = 0; k < kIdsEach; ++k)
      if (mine[k]) same[before[k]] = tile + k * kThreads + thread;
    __syncthreads();
    for (int i = 0; i < total; i += kRowsAtOnce) {
      float rows_of[kRowsAtOnce][kGroup];
#pragma unroll
      for (int k = 0; k < kRowsAtOnce; ++k)
        load_group(rows_of[k], d_out + same[i + k < total ? i + k : i] * dim + column, i + k < total ? count : 0, out_aligned);
#pragma unroll
      for (int k = 0; k < kRowsAtOnce; ++k)
#pragma unroll
        for (int j = 0; j < kGroup; ++j) sum[j] += rows_of[k][j];
    }
    __syncthreads();  // `same` has been read
  }
  if (owner) store_group(to, sum, count, table_aligned);
}

void run(const EmbeddingBackward& op, CudaStream& stream) {
  const int64_t size = size_of(op.d_table.dtype);
  if (!op.accumulate && op.d_table.numel > 0)
    check(cudaMemsetAsync(op.d_table.data, 0, static_cast<size_t>(op.d_table.numel * size), stream.handle()), "[embedding_backward]");
  const dim3 grid(static_cast<unsigned>(op.rows), static_cast<unsigned>(ceil_div(op.dim, kThreads * kGroup)));
  with_floating(op.d_table.dtype, [&](auto d) {
    with_floating(op.d_out.dtype, [&](auto t) {
      using D = decltype(d);
      using T = decltype(t);
      launch(embedding_backward<D, T>, grid, kThreads, 0, stream, op.d_table.as<D>(), op.ids.as<int64_t>(), op.d_out.as<T>(), op.rows, op.vocab,
             op.dim, op.first, op.accumulate, op.dim * size % 16 == 0 && is_aligned(op.d_table.data),
             op.dim * size_of(op.d_out.dtype) % 16 == 0 && is_aligned(op.d_out.data));
    });
  });
}

}  // namespace rz::cuda
