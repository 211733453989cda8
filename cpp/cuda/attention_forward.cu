// Flash attention forward: a block has a tile of queries of one head and goes over the keys that they see with an online
// softmax in float32, base 2. The values of a tile fly in while its keys are used, and the next keys all along.
#include "cuda/attention_mma.h"
#include "cuda/attention_plain.h"
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

__device__ __forceinline__ float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(kFullMask, x, 1));
  return fmaxf(x, __shfl_xor_sync(kFullMask, x, 2));
}
__device__ __forceinline__ float quad_sum(float x) {
  x += __shfl_xor_sync(kFullMask, x, 1);
  return x + __shfl_xor_sync(kFullMask, x, 2);
}

// Scores become probabilities relative to the base of their row. The base is a maximum of scores, not always the latest: it
// moves, and what was summed before shrinks to it, only when a score exceeds it so far that probabilities could grow large.
constexpr float kBaseLag = 8.0f;  // in base 2

template <int M, int N, int D>
__device__ __forceinline__ void softmax_step(float (&s)[M][N][4], float (&o)[M][D][4], float (&base)[M][2], float (&sum)[M][2], float scale) {
  float shrink[M][2];
  bool moved = false;
#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float best = -INFINITY;
#pragma unroll
      for (int n = 0; n < N; ++n) best = fmaxf(best, fmaxf(s[m][n][half * 2], s[m][n][half * 2 + 1]));
      best = quad_max(best) * scale;
      shrink[m][half] = 1.0f;
      if (best > base[m][half] + kBaseLag) {
        shrink[m][half] = exp2_approximate(base[m][half] - best);
        base[m][half] = best;
        moved = true;
      }
      const float from = base[m][half] == -INFINITY ? 0.0f : base[m][half];
      float part = 0.0f;  // of this lane's columns
#pragma unroll
      for (int n = 0; n < N; ++n)
#pragma unroll
        for (int e = half * 2; e < half * 2 + 2; ++e) part += s[m][n][e] = exp2_approximate(s[m][n][e] * scale - from);
      sum[m][half] = sum[m][half] * shrink[m][half] + part;
    }
  if (!__any_sync(kFullMask, moved)) return;
#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int d = 0; d < D; ++d)
#pragma unroll
      for (int e = 0; e < 4; ++e) o[m][d][e] *= shrink[m][e / 2];
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
  float o[M][D][4], base[M][2], sum[M][2];
  clear(o);
#pragma unroll
  for (int m = 0; m < M; ++m) base[m][0] = base[m][1] = -INFINITY, sum[m][0] = sum[m][1] = 0.0f;
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
      softmax_step(s, o, base, sum, a.scale * kLog2e);
      accumulate<T>(o, s, lane.left(kV + part * kRowBytes<kDim>));
    }
  }

#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float total = quad_sum(sum[m][half]), factor = total == 0.0f ? 0.0f : 1.0f / total;
#pragma unroll
      for (int d = 0; d < D; ++d) o[m][d][half * 2] *= factor, o[m][d][half * 2 + 1] *= factor;
      const int row = warp_row + lane_row(m, half);
      if (threadIdx.x % 4 == 0 && row < rows)
        at.lse[head * a.q_rows + span.q0 + i0 + row] = base[m][half] * kLn2 + logf(total);
    }
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

void run(const AttentionForward& op, CudaStream& stream) {
  if (op.q_rows == 0) return;
  const AttentionShape a = attention_shape(AttentionForward::name, op.cu_q, op.cu_k, op.sequences, op.heads, op.kv_heads, op.head_dim,
                                           op.window, op.q_rows, op.scale, op.o, op.q, op.k, op.v);
  with_floating(op.q.dtype, [&](auto t) {
    using T = decltype(t);
    if constexpr (sizeof(T) == 2) {
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
