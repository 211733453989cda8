// [q | k | v] of each head of a row, taken apart and put together: copies of head_dim elements.
#include "ops/qkv.h"

#include "cuda/launch.h"
#include "cuda/row_grid.h"
#include "cuda/units.h"

namespace rz::cuda {

// A cell is a head of a row: 3 · units of `fused`, `units` of each part.
template <class Unit, bool kSplit>
static __global__ void move_parts(Unit* fused, Unit* q, Unit* k, Unit* v, int64_t cells, int units) {
  for (int64_t cell = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y; cell < cells; cell += static_cast<int64_t>(gridDim.x) * blockDim.y)
    for (int i = static_cast<int>(threadIdx.x); i < 3 * units; i += static_cast<int>(blockDim.x)) {
      Unit& whole = fused[cell * 3 * units + i];
      Unit& part = (i < units ? q : i < 2 * units ? k : v)[cell * units + i % units];
      if constexpr (kSplit) part = whole;
      else whole = part;
    }
}

template <bool kSplit>
static void move(const View& qkv, const View& q, const View& k, const View& v, int64_t cells, int64_t head_dim, CudaStream& stream) {
  const int64_t bytes = head_dim * size_of(qkv.dtype);
  with_unit({qkv.data, q.data, k.data, v.data}, bytes, [&](auto unit) {
    using Unit = decltype(unit);
    const int64_t units = bytes / static_cast<int64_t>(sizeof(Unit));
    const RowGrid shape(cells, 3 * units, stream);
    launch(move_parts<Unit, kSplit>, shape.grid, shape.block, 0, stream, qkv.as<Unit>(), q.as<Unit>(), k.as<Unit>(), v.as<Unit>(), cells, units);
  });
}

void run(const SplitQkv& op, CudaStream& stream) { move<true>(op.qkv, op.q, op.k, op.v, op.rows * op.heads, op.head_dim, stream); }

void run(const MergeQkv& op, CudaStream& stream) { move<false>(op.qkv, op.q, op.k, op.v, op.rows * op.heads, op.head_dim, stream); }

}  // namespace rz::cuda
