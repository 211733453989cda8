// Flash attention forward: a block has a tile of queries of one head and goes over the keys that they see with an online
// softmax in float32, base 2. The values of a tile fly in while its keys are used, and the next keys all along.
#include "cuda/attention_hopper.h"
#include "cuda/attention_mma.h"
#include "cuda/attention_plain.h"
#include "cuda/attention_softmax.h"
#include "cuda/launch.h"

namespace rz::cuda {
namespace {

template <class T>
struct Operands {
  T* o;        // (q_rows, heads, dim)
  float* lse;  // (heads, q_rows)
  const T* q;  // (q_rows, heads, dim)
  const T *k, *v;  // (k_rows, kv_heads, dim)
};

template <class T>
Operands<T> operands(const AttentionForward& op) {
  return {op.o.as<T>(), op.lse.as<float>(), op.q.as<T>(), op.k.as<T>(), op.v.as<T>()};
}

// kWarps warps of 16 M queries each; kKeys keys at a time, which become scores in parts as large as registers allow. kKeep:
// queries stay in registers, else they are read again from shared memory for every part.
template <class T, int kDim, int M, int kWarps, int kKeys, int kPart, bool kKeep>
__global__ void attention_forward(Operands<T> at, AttentionShape a) {
  constexpr int kThreads = kWarps * kWarp, kWarpRows = 16 * M, kRows = kWarps * kWarpRows, N = kPart / 8, D = kDim / 8, kSteps = kDim / 16;
  const int head = static_cast<int>(blockIdx.x) % a.heads, kv_head = head / (a.heads / a.kv_heads);
  // The last tiles see most keys: they go first.
  const Slot slot(a.cu_q, a.sequences, static_cast<int>((gridDim.x - 1 - blockIdx.x) / a.heads), kRows);
  const Span span(a, slot.sequence);
  const int i0 = slot.row, rows = span.queries - i0;
  if (rows <= 0) return;
  const int q_stride = a.heads * a.dim, k_stride = a.kv_heads * a.dim;
  const int64_t q_at = (span.q0 + i0) * q_stride + head * a.dim;
  const int64_t k_at = span.k0 * k_stride + kv_head * a.dim;

  constexpr int kQ = 0, kK = kQ + kRows * kRowBytes<kDim>, kTile = kKeys * kRowBytes<kDim>, kV = kK + 2 * kTile;  // two tiles of keys
  auto* shared = dynamic_shared<unsigned char>();
  const SharedAddress begin = shared_address(shared);
  const Lane<kDim> lane(begin);
  const int warp_row = static_cast<int>(threadIdx.x) / kWarp * kWarpRows, i_warp = i0 + warp_row;
  float o[M][D][4];
  clear(o);
  OnlineSoftmax<M> softmax;
  uint32_t kept[kKeep ? kSteps : 1][M][4];

  const int j_begin = span.first_key(i0) / kKeys * kKeys, j_end = std::min(span.keys, span.last_key(i0 + std::min(rows, kRows) - 1) + 1);
  const auto load_keys = [&](int j) {
    load_tile<kKeys, kDim, kThreads>(begin + kK + j / kKeys % 2 * kTile, at.k + k_at + static_cast<int64_t>(j) * k_stride, k_stride, span.keys - j, a.dim);
  };
  load_tile<kRows, kDim, kThreads>(begin + kQ, at.q + q_at, q_stride, rows, a.dim);
  if (j_begin < j_end) load_keys(j_begin);
  copy_async_commit();
  for (int j = j_begin; j < j_end; j += kKeys) {
    copy_async_wait<0>();
    __syncthreads();  // the keys are here, and nothing of the last tile is needed any more
    load_tile<kKeys, kDim, kThreads>(begin + kV, at.v + k_at + static_cast<int64_t>(j) * k_stride, k_stride, span.keys - j, a.dim);
    copy_async_commit();
    if (j + kKeys < j_end) load_keys(j + kKeys);
    copy_async_commit();
    const int k_tile = kK + j / kKeys % 2 * kTile, q_tile = kQ + warp_row * kRowBytes<kDim>;
    if constexpr (kKeep) {
      if (j == j_begin)
#pragma unroll
        for (int step = 0; step < kSteps; ++step) load_left(kept[step], lane.left(q_tile), step);
    }
#pragma unroll 1
    for (int part = 0; part < kKeys; part += kPart) {
      float s[M][N][4];
      const bool sees = i_warp < span.queries && span.some(i_warp, kWarpRows, j + part, kPart);
      const auto k_walk = lane.right(k_tile + part * kRowBytes<kDim>);
      if constexpr (kKeep) {
        clear(s);
        if (sees)
#pragma unroll
          for (int step = 0; step < kSteps; ++step) add_scores<T>(s, kept[step], k_walk, step);
      } else {
        if (sees) scores<T>(s, lane.left(q_tile), k_walk);
      }
      if (part == 0) {
        copy_async_wait<1>();
        __syncthreads();  // the values are here
      }
      if (!sees) continue;
      if (!span.all(i_warp, kWarpRows, j + part, kPart)) mask<false>(s, span, i_warp, j + part, -INFINITY);
      if (__any_sync(kFullMask, softmax.step(s, a.scale * kLog2e))) softmax.shrink_rows(o);
      accumulate<T>(o, s, lane.left(kV + part * kRowBytes<kDim>));
    }
  }

  softmax.finish(o, at.lse + head * a.q_rows + span.q0 + i_warp, rows - warp_row);
  copy_async_wait<0>();
  __syncthreads();  // no query is still on its way to where the results go
  store_rows<kDim>(at.o + q_at + warp_row * q_stride, q_stride, rows - warp_row, a.dim, o, 1.0f,
                   shared + kQ + warp_row * kRowBytes<kDim>);
}

template <class T, int kDim, int M, int kWarps, int kKeys, int kPart, bool kKeep>
void launch_forward(const AttentionForward& op, const AttentionShape& a, CudaStream& stream) {
  constexpr int kRows = kWarps * 16 * M;
  const unsigned blocks = attention_blocks(AttentionForward::name, tile_slots(op.q_rows, op.sequences, kRows), op.heads);
  launch(attention_forward<T, kDim, M, kWarps, kKeys, kPart, kKeep>, blocks, kWarps * kWarp, (kRows + 3 * kKeys) * kDim * sizeof(T), stream,
         operands<T>(op), a);
}

// The same without tensor cores. One buffer serves keys and values in turn.
template <class T, int kDim, int kTile>
__global__ void attention_forward_plain(Operands<T> at, AttentionShape a) {
  constexpr int R = kTile / 16, C = kDim / 16;
  const int head = static_cast<int>(blockIdx.x) % a.heads, kv_head = head / (a.heads / a.kv_heads);
  const Slot slot(a.cu_q, a.sequences, static_cast<int>((gridDim.x - 1 - blockIdx.x) / a.heads), kTile);
  const Span span(a, slot.sequence);
  const int i0 = slot.row, rows = span.queries - i0;
  if (rows <= 0) return;
  const int64_t q_stride = static_cast<int64_t>(a.heads) * a.dim, k_stride = static_cast<int64_t>(a.kv_heads) * a.dim;
  const int64_t q_at = (span.q0 + i0) * q_stride + head * a.dim, k_at = span.k0 * k_stride + kv_head * a.dim;
  float* q_tile = dynamic_shared<float>();
  float* kv_tile = q_tile + plain::kTileFloats<kTile, kDim>;
  float* p_tile = kv_tile + plain::kTileFloats<kTile, kDim>;
  const float scale = a.scale * kLog2e;
  float o[R][C] = {}, top[R], sum[R] = {};
#pragma unroll
  for (int r = 0; r < R; ++r) top[r] = -INFINITY;

  plain::load_tile<kTile, kDim>(q_tile, at.q + q_at, q_stride, rows, a.dim);
  const int j_begin = span.first_key(i0) / kTile * kTile, j_end = std::min(span.keys, span.last_key(i0 + std::min(rows, kTile) - 1) + 1);
  for (int j = j_begin; j < j_end; j += kTile) {
    __syncthreads();  // the last values have been used
    plain::load_tile<kTile, kDim>(kv_tile, at.k + k_at + j * k_stride, k_stride, span.keys - j, a.dim);
    __syncthreads();
    float s[R][R];
    plain::scores<kDim>(s, q_tile, kv_tile, a.dim);
#pragma unroll
    for (int r = 0; r < R; ++r) {
      float best = top[r];
#pragma unroll
      for (int c = 0; c < R; ++c) {
        if (!span.sees(i0 + plain::ty() + r * 16, j + plain::tx() + c * 16)) s[r][c] = -INFINITY;
        best = fmaxf(best, s[r][c] * scale);
      }
      best = plain::row_max(best);
      const float base = best == -INFINITY ? 0.0f : best, shrink = exp2f(top[r] - base);
      top[r] = best;
      sum[r] *= shrink;
#pragma unroll
      for (int c = 0; c < R; ++c) sum[r] += s[r][c] = exp2f(s[r][c] * scale - base);
#pragma unroll
      for (int d = 0; d < C; ++d) o[r][d] *= shrink;
    }
    plain::share(p_tile, s);
    __syncthreads();  // the keys have been used
    plain::load_tile<kTile, kDim>(kv_tile, at.v + k_at + j * k_stride, k_stride, span.keys - j, a.dim);
    __syncthreads();
    plain::accumulate<kDim>(o, p_tile, kv_tile);
  }
#pragma unroll
  for (int r = 0; r < R; ++r) {
    const float total = plain::row_sum(sum[r]), factor = total == 0.0f ? 0.0f : 1.0f / total;
#pragma unroll
    for (int d = 0; d < C; ++d) o[r][d] *= factor;
    const int row = plain::ty() + r * 16;
    if (plain::tx() == 0 && row < rows) at.lse[head * a.q_rows + span.q0 + i0 + row] = top[r] * kLn2 + logf(total);
  }
  plain::store_rows(at.o + q_at, q_stride, rows, a.dim, o, 1.0f);
}

template <class T, int kDim, int kTile>
void launch_plain(const AttentionForward& op, const AttentionShape& a, CudaStream& stream) {
  const unsigned blocks = attention_blocks(AttentionForward::name, tile_slots(op.q_rows, op.sequences, kTile), op.heads);
  constexpr int kFloats = 2 * plain::kTileFloats<kTile, kDim> + plain::kTileFloats<kTile, kTile>;
  launch(attention_forward_plain<T, kDim, kTile>, blocks, plain::kThreads, kFloats * sizeof(float), stream, operands<T>(op), a);
}

}  // namespace

AttentionShape shape_of(const AttentionForward& op) {
  return attention_shape(AttentionForward::name, op.cu_q, op.cu_k, op.sequences, op.heads, op.kv_heads, op.head_dim, op.window, op.q_rows, op.scale,
                         op.o, op.q, op.k, op.v);
}

void run(const AttentionForward& op, CudaStream& stream) {
  if (op.q_rows == 0) return;
  const AttentionShape a = shape_of(op);
  with_floating(op.q.dtype, [&](auto t) {
    using T = decltype(t);
    if constexpr (sizeof(T) == 2) {
      if (suits_hopper(a, op.q.dtype, op.k_rows, stream)) return run_hopper(op, a, stream);
      if (a.aligned && a.dim <= 64) return launch_forward<T, 64, 2, 4, 64, 64, true>(op, a, stream);
      if (a.aligned && a.dim <= 96) return launch_forward<T, 96, 2, 4, 64, 64, false>(op, a, stream);
      if (a.aligned && a.dim <= 128) return launch_forward<T, 128, 2, 4, 64, 32, false>(op, a, stream);
      if (a.aligned) return launch_forward<T, 256, 1, 4, 32, 32, false>(op, a, stream);
    }
    if (a.dim <= 64) return launch_plain<T, 64, 64>(op, a, stream);
    if (a.dim <= 128) return launch_plain<T, 128, 64>(op, a, stream);
    return launch_plain<T, 256, 32>(op, a, stream);
  });
}

}  // namespace rz::cuda
