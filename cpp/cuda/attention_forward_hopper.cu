// Flash attention forward on Hopper. While a consumer's scores become probabilities, its product of the probabilities before
// them is under way, and the scores of the other consumers.
#include "cuda/attention_hopper.h"
#include "cuda/attention_softmax.h"
#include "cuda/launch.h"

namespace rz::cuda {
namespace {

struct Maps {
  TensorMap q, k, v;
};

template <class T, int kDim, int kConsumers, int kKeys>
__global__ void __launch_bounds__((kConsumers + 1) * kWarpgroup, 1)
attention_forward_hopper(const __grid_constant__ Maps maps, T* o_rows, float* lse, AttentionShape a, uint64_t limit) {
  constexpr int kRows = kConsumers * kTileRows, kStages = 2, kTurns = 1 + kConsumers, N = kKeys / 8, D = kDim / 8;
  using Queries = HopperTile<kTileRows, kDim>;
  using Keys = HopperTile<kKeys, kDim>;
  const int head = static_cast<int>(blockIdx.x) % a.heads, kv_head = head / (a.heads / a.kv_heads);
  // The last tiles see most keys: they go first.
  const Slot slot(a.cu_q, a.sequences, static_cast<int>((gridDim.x - 1 - blockIdx.x) / a.heads), kRows);
  const Span span(a, slot.sequence);
  const int i0 = slot.row, rows = span.queries - i0;
  if (rows <= 0) return;
  const int j_begin = span.first_key(i0) / kKeys * kKeys, j_end = std::min(span.keys, span.last_key(i0 + std::min(rows, kRows) - 1) + 1);
  const int tiles = (std::max(j_end - j_begin, 0) + kKeys - 1) / kKeys;

  constexpr int kK = kConsumers * Queries::kBytes, kV = kK + kStages * Keys::kBytes, kBarriers = kV + kStages * Keys::kBytes;
  unsigned char* shared = swizzled_shared();
  const SharedAddress begin = shared_address(shared), q_full = begin + kBarriers;
  const TileRing<kStages> key_ring{q_full + 8}, value_ring{key_ring.begin + key_ring.kBytes};
  const auto queries = [&](int consumer) { return Queries{begin + static_cast<SharedAddress>(consumer * Queries::kBytes)}; };
  const auto keys = [&](int n) { return Keys{begin + static_cast<SharedAddress>(kK + n % kStages * Keys::kBytes)}; };
  const auto values = [&](int n) { return Keys{begin + static_cast<SharedAddress>(kV + n % kStages * Keys::kBytes)}; };
  if (threadIdx.x == 0) {
    barrier_init(q_full, 1);
    key_ring.init(1, kConsumers * 4);
    value_ring.init(1, kConsumers * 4);
    barriers_initialised();
  }
  __syncthreads();

  const int warpgroup = own_warpgroup();
  if (warpgroup == 0) {
    fewer_registers<kProducerRegisters<kConsumers>>();
    if (threadIdx.x == 0) {
      const int q_row = static_cast<int>(span.q0) + i0, k_row = static_cast<int>(span.k0) + j_begin;
      barrier_expect(q_full, kConsumers * Queries::kBytes);
      for (int c = 0; c < kConsumers; ++c) queries(c).copy(maps.q, q_full, head, q_row + c * kTileRows);
      for (int n = 0; n < tiles; ++n) {
        key_ring.wait_empty(n, limit);
        barrier_expect(key_ring.full(n), Keys::kBytes);
        keys(n).copy(maps.k, key_ring.full(n), kv_head, k_row + n * kKeys);
        value_ring.wait_empty(n, limit);
        barrier_expect(value_ring.full(n), Keys::kBytes);
        values(n).copy(maps.v, value_ring.full(n), kv_head, k_row + n * kKeys);
      }
      barrier_watch(q_full, 0, limit);
      key_ring.drain(tiles, limit);
      value_ring.drain(tiles, limit);
    }
  } else {
    more_registers<kConsumerRegisters<kConsumers>>();
    const int consumer = warpgroup - 1, warp = static_cast<int>(threadIdx.x) % kWarpgroup / kWarp;
    const int warp_row = consumer * kTileRows + warp * 16, i_warp = i0 + warp_row;
    const Queries q = queries(consumer);
    float s[1][N][4], o[1][D][4];
    uint32_t p[N / 2][4];
    OnlineSoftmax<1> softmax;
    clear(o);
    const auto probabilities = [&](int n) {
      const int j = j_begin + n * kKeys;
      if (!span.all(i_warp, 16, j, kKeys)) mask<false>(s, span, i_warp, j, -INFINITY);
      return softmax.step(s, a.scale * kLog2e);
    };
    // The products of consumers take turns, so that those of one are under way while another has probabilities to compute.
    const auto await_turn = [&](int n) {
      if (n > 1 || consumer > 0) sync_threads_of(kTurns + consumer, 2 * kWarpgroup);
    };
    const auto pass_turn = [&](int n) {
      if (consumer + 1 < kConsumers) arrive_of(kTurns + consumer + 1, 2 * kWarpgroup);
      else if (n + 1 < tiles) arrive_of(kTurns, 2 * kWarpgroup);
    };
    barrier_wait(q_full, 0);
    if (tiles > 0) {
      key_ring.wait_full(0);
      wgmma_fence();
      hopper_scores<T>(s, q, keys(0));
      wgmma_wait<0>(s[0]);
      key_ring.release(0);
      probabilities(0);
      pack_left<T>(p, s);
      if (tiles > 1) key_ring.wait_full(1);
      for (int n = 1; n < tiles; ++n) {
        await_turn(n);
        wgmma_fence();
        hopper_scores<T>(s, q, keys(n));
        value_ring.wait_full(n - 1);
        wgmma_fence();
        hopper_accumulate<T>(o, p, values(n - 1));
        pass_turn(n);
        wgmma_wait<1>(s[0]);
        key_ring.release(n);
        const bool moved = __any_sync(kFullMask, probabilities(n));
        // The wait for the next keys stands here so that the compiler leaves that for the products behind the probabilities.
        settle(s[0]);
        if (n + 1 < tiles) key_ring.wait_full(n + 1);
        wgmma_wait<0>(o[0]);
        value_ring.release(n - 1);
        if (moved) softmax.shrink_rows(o);
        settle(o[0]);
        pack_left<T>(p, s);
      }
      value_ring.wait_full(tiles - 1);
      clear_behind(consumer, span.keys - j_begin - (tiles - 1) * kKeys, values(tiles - 1));
      wgmma_fence();
      hopper_accumulate<T>(o, p, values(tiles - 1));
      wgmma_wait<0>(o[0]);
      value_ring.release(tiles - 1);
    }
    softmax.finish(o, lse + head * a.q_rows + span.q0 + i_warp, rows - warp_row);
    sync_consumer(consumer);  // no warp still reads the queries, where the results go
    const int stride = a.heads * kDim;
    store_rows<kDim>(o_rows + (span.q0 + i_warp) * stride + head * kDim, stride, rows - warp_row, kDim, o, 1.0f,
                     shared + consumer * Queries::kBytes + warp * 16 * kRowBytes<kDim>);
  }
}

template <class T, int kDim, int kConsumers, int kKeys>
void launch_forward(const AttentionForward& op, const AttentionShape& a, CudaStream& stream) {
  constexpr int kRows = kConsumers * kTileRows;
  constexpr size_t kBytes = (kRows + 4 * kKeys) * kDim * sizeof(T) + 8 + 2 * TileRing<2>::kBytes;
  const Maps maps{tile_map<kDim>(op.q, op.q_rows, op.heads), tile_map<kDim>(op.k, op.k_rows, op.kv_heads), tile_map<kDim>(op.v, op.k_rows, op.kv_heads)};
  const unsigned blocks = attention_blocks(AttentionForward::name, tile_slots(op.q_rows, op.sequences, kRows), op.heads);
  launch(attention_forward_hopper<T, kDim, kConsumers, kKeys>, blocks, (kConsumers + 1) * kWarpgroup, kBytes, stream, maps, op.o.as<T>(),
         op.lse.as<float>(), a, barrier_limit(stream));
}

template <class T>
void launch_forward(const AttentionForward& op, const AttentionShape& a, CudaStream& stream) {
  if (a.dim == 64) return launch_forward<T, 64, 3, 128>(op, a, stream);
  if (a.dim == 96) return launch_forward<T, 96, 2, 128>(op, a, stream);
  launch_forward<T, 128, 2, 128>(op, a, stream);
}

}  // namespace

void run_hopper(const AttentionForward& op, const AttentionShape& a, CudaStream& stream) {
  if (op.q.dtype == DType::BFloat16) launch_forward<bf16>(op, a, stream);
  else launch_forward<f16>(op, a, stream);
}

}  // namespace rz::cuda
