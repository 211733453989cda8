// Flash attention backward on Hopper: the products of attention_backward.cu, by blocks that own keys and blocks that own queries.
// Everything that one product makes for the next stays in registers.
#include "cuda/attention_backward.h"
#include "cuda/attention_hopper.h"
#include "cuda/launch.h"

namespace rz::cuda {
namespace {

struct Maps {
  TensorMap q, d_o, k, v;
};

constexpr int kConsumers = 2, kOwnRows = kConsumers * kTileRows, kStages = 2, kThreads = (kConsumers + 1) * kWarpgroup;

// Shared memory: two tensors' rows that a block owns, then two others' in stages, then barriers and what else stages hold.
template <int kDim, int kRows>
struct Layout {
  using Own = HopperTile<kTileRows, kDim>;
  using Other = HopperTile<kRows, kDim>;
  static constexpr int kOwn = kConsumers * Own::kBytes, kStage = 2 * Other::kBytes;
  static constexpr int kBarriers = 2 * kOwn + kStages * kStage, kRest = kBarriers + 16 + TileRing<kStages>::kBytes;
  SharedAddress begin;

  __device__ __forceinline__ Own own(int which, int consumer) const {
    return {begin + static_cast<SharedAddress>(which * kOwn + consumer * Own::kBytes)};
  }
  __device__ __forceinline__ Other other(int which, int n) const {
    return {begin + static_cast<SharedAddress>(2 * kOwn + n % kStages * kStage + which * Other::kBytes)};
  }
  __device__ __forceinline__ SharedAddress own_full() const { return begin + kBarriers; }
  __device__ __forceinline__ TileRing<kStages> ring() const { return {begin + kBarriers + 16}; }

  __device__ __forceinline__ void init(int producer_threads) const {
    if (threadIdx.x == 0) {
      barrier_init(own_full(), 1);
      ring().init(producer_threads, kConsumers * 4);
      barriers_initialised();
    }
    __syncthreads();
  }
  __device__ __forceinline__ void copy_own(const TensorMap& first, const TensorMap& second, int head, int row) const {
    barrier_expect(own_full(), 2 * kOwn);
    for (int c = 0; c < kConsumers; ++c) {
      own(0, c).copy(first, own_full(), head, row + c * kTileRows);
      own(1, c).copy(second, own_full(), head, row + c * kTileRows);
    }
  }
  // Arrives.
  __device__ __forceinline__ void copy_other(int n, const TensorMap& first, const TensorMap& second, int head, int row) const {
    const SharedAddress barrier = ring().full(n);
    barrier_expect(barrier, kStage);
    other(0, n).copy(first, barrier, head, row);
    other(1, n).copy(second, barrier, head, row);
  }
};

// A consumer has 64 keys, kQueries queries come at a time: of all heads that read the keys, one after the other.
template <class T, int kDim, int kQueries>
__global__ void __launch_bounds__(kThreads, 1)
attention_backward_keys_hopper(const __grid_constant__ Maps maps, T* dk_rows, T* dv_rows, const float* lse, const float* delta, AttentionShape a,
                               uint64_t limit) {
  constexpr int N = kQueries / 8, D = kDim / 8;
  using Shared = Layout<kDim, kQueries>;
  const BackwardPlace place(a.kv_heads, false);
  const Slot slot(a.cu_k, a.sequences, place.slot, kOwnRows);
  const Span span(a, slot.sequence);
  const int j0 = slot.row, rows = span.keys - j0, group = a.heads / a.kv_heads, head0 = place.head * group;
  if (rows <= 0) return;
  const int i_begin = first_query(span, j0), i_end = end_of_queries(span, j0, kOwnRows);
  const int tiles = std::max(0, (i_end - i_begin + kQueries - 1) / kQueries) * group;

  unsigned char* shared = swizzled_shared();
  const Shared at{shared_address(shared)};
  const TileRing<kStages> ring = at.ring();
  // What probabilities of a query are relative to, and its delta: (stages, 2, kQueries).
  auto* of_queries = reinterpret_cast<float*>(shared + Shared::kRest);
  at.init(kWarp);

  const int warpgroup = own_warpgroup();
  if (warpgroup == 0) {
    fewer_registers<kProducerRegisters<kConsumers>>();
    const int lane = static_cast<int>(threadIdx.x);
    if (lane >= kWarp) return;
    if (lane == 0) at.copy_own(maps.k, maps.v, place.head, static_cast<int>(span.k0) + j0);
    for (int n = 0, head = head0, i = i_begin; n < tiles; ++n, i += kQueries) {
      if (i >= i_end) ++head, i = i_begin;
      const int64_t row = head * a.q_rows + span.q0 + i;
      float base[kQueries / kWarp], own_delta[kQueries / kWarp];
#pragma unroll
      for (int r = 0; r < kQueries / kWarp; ++r) {
        const int query = r * kWarp + lane;
        const bool there = i + query < span.queries;
        base[r] = there ? base_of(lse[row + query]) : 0.0f;
        own_delta[r] = there ? delta[row + query] : 0.0f;
      }
      ring.wait_empty(n, limit);
      float* to = of_queries + n % kStages * 2 * kQueries + lane;
#pragma unroll
      for (int r = 0; r < kQueries / kWarp; ++r) to[r * kWarp] = base[r], to[kQueries + r * kWarp] = own_delta[r];
      if (lane == 0) at.copy_other(n, maps.q, maps.d_o, head, static_cast<int>(span.q0) + i);
      else barrier_arrive(ring.full(n));
    }
    barrier_watch(at.own_full(), 0, limit);
    ring.drain(tiles, limit);
  } else {
    more_registers<kConsumerRegisters<kConsumers>>();
    const int consumer = warpgroup - 1, warp = static_cast<int>(threadIdx.x) % kWarpgroup / kWarp;
    const int own_row = consumer * kTileRows, warp_row = own_row + warp * 16, j_warp = j0 + warp_row;
    const auto k = at.own(0, consumer), v = at.own(1, consumer);
    float dk[1][D][4], dv[1][D][4];
    clear(dk), clear(dv);
    barrier_wait(at.own_full(), 0);
    for (int n = 0, i = i_begin; n < tiles; ++n, i += kQueries) {
      if (i >= i_end) i = i_begin;  // of the next head
      ring.wait_full(n);
      if (span.some(i, kQueries, j0 + own_row, kTileRows)) {
        const auto q = at.other(0, n), d_o = at.other(1, n);
        const float* base = of_queries + n % kStages * 2 * kQueries;
        const float* own_delta = base + kQueries;
        float p[1][N][4], ds[1][N][4];
        uint32_t left[N / 2][4], d_left[N / 2][4];
        clear_behind(consumer, span.queries - i, q, d_o);
        wgmma_fence();
        hopper_scores<T>(p, k, q);
        hopper_scores<T>(ds, v, d_o);
        wgmma_wait<1>(p[0]);
#pragma unroll
        for (int c = 0; c < N; ++c)
#pragma unroll
          for (int e = 0; e < 4; ++e) p[0][c][e] = exp2_approximate(p[0][c][e] * (a.scale * kLog2e) - base[lane_column(c) + e % 2]);
        if (!span.all(i, kQueries, j_warp, 16)) mask<true>(p, span, i, j_warp, 0.0f);
        pack_left<T>(left, p);
        wgmma_fence();
        hopper_accumulate<T>(dv, left, d_o);
        wgmma_wait<1>(ds[0]);
#pragma unroll
        for (int c = 0; c < N; ++c)
#pragma unroll
          for (int e = 0; e < 4; ++e) ds[0][c][e] = p[0][c][e] * (ds[0][c][e] - own_delta[lane_column(c) + e % 2]);
        pack_left<T>(d_left, ds);
        wgmma_fence();
        hopper_accumulate<T>(dk, d_left, q);
        wgmma_wait<0>(dv[0], dk[0]);
      }
      ring.release(n);
    }
    sync_consumer(consumer);  // no warp still reads the keys, where the results go
    const int stride = a.kv_heads * kDim;
    const int64_t to = (span.k0 + j_warp) * stride + place.head * kDim;
    unsigned char* room = shared + consumer * Shared::Own::kBytes + warp * 16 * kRowBytes<kDim>;
    store_rows<kDim>(dk_rows + to, stride, rows - warp_row, kDim, dk, a.scale, room);
    store_rows<kDim>(dv_rows + to, stride, rows - warp_row, kDim, dv, 1.0f, room + Shared::kOwn);
  }
}

// A consumer has 64 queries, kKeys keys and values come at a time.
template <class T, int kDim, int kKeys>
__global__ void __launch_bounds__(kThreads, 1)
attention_backward_queries_hopper(const __grid_constant__ Maps maps, T* dq_rows, const float* lse, const float* delta, AttentionShape a,
                                  uint64_t limit) {
  constexpr int N = kKeys / 8, D = kDim / 8;
  using Shared = Layout<kDim, kKeys>;
  const BackwardPlace place(a.heads, true);
  const int head = place.head, kv_head = head / (a.heads / a.kv_heads);
  const Slot slot(a.cu_q, a.sequences, place.slot, kOwnRows);
  const Span span(a, slot.sequence);
  const int i0 = slot.row, rows = span.queries - i0;
  if (rows <= 0) return;
  const int j_begin = span.first_key(i0) / kKeys * kKeys, j_end = std::min(span.keys, span.last_key(i0 + std::min(rows, int{kOwnRows}) - 1) + 1);
  const int tiles = (std::max(j_end - j_begin, 0) + kKeys - 1) / kKeys;

  unsigned char* shared = swizzled_shared();
  const Shared at{shared_address(shared)};
  const TileRing<kStages> ring = at.ring();
  at.init(1);

  const int warpgroup = own_warpgroup();
  if (warpgroup == 0) {
    fewer_registers<kProducerRegisters<kConsumers>>();
    if (threadIdx.x != 0) return;
    at.copy_own(maps.q, maps.d_o, head, static_cast<int>(span.q0) + i0);
    for (int n = 0; n < tiles; ++n) {
      ring.wait_empty(n, limit);
      at.copy_other(n, maps.k, maps.v, kv_head, static_cast<int>(span.k0) + j_begin + n * kKeys);
    }
    barrier_watch(at.own_full(), 0, limit);
    ring.drain(tiles, limit);
  } else {
    more_registers<kConsumerRegisters<kConsumers>>();
    const int consumer = warpgroup - 1, warp = static_cast<int>(threadIdx.x) % kWarpgroup / kWarp;
    const int own_row = consumer * kTileRows, warp_row = own_row + warp * 16, i_warp = i0 + warp_row;
    const auto q = at.own(0, consumer), d_o = at.own(1, consumer);
    float dq[1][D][4], base[2], own_delta[2];
    clear(dq);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = warp_row + lane_row(0, half);
      const int64_t from = head * a.q_rows + span.q0 + i0 + row;
      base[half] = row < rows ? base_of(lse[from]) : 0.0f;
      own_delta[half] = row < rows ? delta[from] : 0.0f;
    }
    barrier_wait(at.own_full(), 0);
    for (int n = 0; n < tiles; ++n) {
      const int j = j_begin + n * kKeys;
      ring.wait_full(n);
      if (span.some(i0 + own_row, kTileRows, j, kKeys)) {
        const auto k = at.other(0, n), v = at.other(1, n);
        float p[1][N][4], ds[1][N][4];
        uint32_t left[N / 2][4];
        clear_behind(consumer, span.keys - j, k, v);
        wgmma_fence();
        hopper_scores<T>(p, q, k);
        hopper_scores<T>(ds, d_o, v);
        wgmma_wait<1>(p[0]);
#pragma unroll
        for (int c = 0; c < N; ++c)
#pragma unroll
          for (int e = 0; e < 4; ++e) p[0][c][e] = exp2_approximate(p[0][c][e] * (a.scale * kLog2e) - base[e / 2]);
        // Not behind the wait, which the compiler would put before the powers.
        if (!span.all(i_warp, 16, j, kKeys)) mask<false>(p, span, i_warp, j, 0.0f);
        wgmma_wait<0>(ds[0]);
#pragma unroll
        for (int c = 0; c < N; ++c)
#pragma unroll
          for (int e = 0; e < 4; ++e) ds[0][c][e] = p[0][c][e] * (ds[0][c][e] - own_delta[e / 2]);
        pack_left<T>(left, ds);
        wgmma_fence();
        hopper_accumulate<T>(dq, left, k);
        wgmma_wait<0>(dq[0]);
      }
      ring.release(n);
    }
    sync_consumer(consumer);  // no warp still reads the queries, where the results go
    const int stride = a.heads * kDim;
    store_rows<kDim>(dq_rows + (span.q0 + i_warp) * stride + head * kDim, stride, rows - warp_row, kDim, dq, a.scale,
                     shared + consumer * Shared::Own::kBytes + warp * 16 * kRowBytes<kDim>);
  }
}

template <class T, int kDim, int kQueries, int kKeys>
void launch_backward(const AttentionBackward& op, const AttentionShape& a, const float* delta, CudaStream& stream) {
  constexpr size_t kKeysBytes = Layout<kDim, kQueries>::kRest + kStages * 2 * kQueries * sizeof(float);
  constexpr size_t kQueriesBytes = Layout<kDim, kKeys>::kRest;
  const Maps maps{tile_map<kDim>(op.q, op.rows, op.heads), tile_map<kDim>(op.d_o, op.rows, op.heads), tile_map<kDim>(op.k, op.rows, op.kv_heads),
                  tile_map<kDim>(op.v, op.rows, op.kv_heads)};
  const int64_t slots = tile_slots(op.rows, op.sequences, kOwnRows);
  launch(attention_backward_keys_hopper<T, kDim, kQueries>, attention_blocks(AttentionBackward::name, slots, op.kv_heads), kThreads, kKeysBytes, stream,
         maps, op.dk.as<T>(), op.dv.as<T>(), op.lse.as<float>(), delta, a, barrier_limit(stream));
  launch(attention_backward_queries_hopper<T, kDim, kKeys>, attention_blocks(AttentionBackward::name, slots, op.heads), kThreads, kQueriesBytes, stream,
         maps, op.dq.as<T>(), op.lse.as<float>(), delta, a, barrier_limit(stream));
}

template <class T>
void launch_backward(const AttentionBackward& op, const AttentionShape& a, const float* delta, CudaStream& stream) {
  if (a.dim == 64) return launch_backward<T, 64, 64, 128>(op, a, delta, stream);
  if (a.dim == 96) return launch_backward<T, 96, 64, 128>(op, a, delta, stream);
  launch_backward<T, 128, 64, 128>(op, a, delta, stream);
}

}  // namespace

void run_hopper(const AttentionBackward& op, const AttentionShape& a, const float* delta, CudaStream& stream) {
  if (op.q.dtype == DType::BFloat16) launch_backward<bf16>(op, a, delta, stream);
  else launch_backward<f16>(op, a, delta, stream);
}

}  // namespace rz::cuda
