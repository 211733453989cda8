// Flash attention backward, without atomics, so that results do not depend on timing: probabilities are computed anew from
// lse, once by blocks that each own a tile of keys (dk and dv, summed over the queries and heads that read it) and once by
// blocks that each own a tile of queries (dq). With delta = Σ do ∘ o of a row:
//   p = exp(scale q kᵀ - lse)     dv = pᵀ do     ds = p ∘ (do vᵀ - delta)     dq = scale ds k     dk = scale dsᵀ q
#include "cuda/attention_backward.h"
#include "cuda/attention_hopper.h"
#include "cuda/attention_mma.h"
#include "cuda/attention_plain.h"
#include "cuda/launch.h"
#include "cuda/reduce.h"

namespace rz::cuda {
namespace {

template <class T>
struct Operands {
  T *dq, *dk, *dv;
  const T *d_o, *o, *q;            // (rows, heads, dim)
  const T *k, *v;                  // (rows, kv_heads, dim)
  const float *lse;                // (heads, rows)
  float* delta;                    // (heads, rows)
};

constexpr int kDeltaThreads = 256;

// A warp for each row of each head: no row has more than 32 groups.
template <class T>
__global__ void delta_of_rows(Operands<T> at, AttentionShape a) {
  static_assert(kMostHeadDim <= kWarp * kGroup);
  const int64_t i = (static_cast<int64_t>(blockIdx.x) * kDeltaThreads + threadIdx.x) / kWarp;
  if (i >= a.q_rows * a.heads) return;  // whole warps only
  const int column = static_cast<int>(threadIdx.x) % kWarp * kGroup;
  float o[kGroup], d_o[kGroup], sum = 0.0f;
  load_group(o, at.o + i * a.dim + column, a.dim - column, a.aligned);
  load_group(d_o, at.d_o + i * a.dim + column, a.dim - column, a.aligned);
#pragma unroll
  for (int e = 0; e < kGroup; ++e) sum += o[e] * d_o[e];
  sum = warp_sum(sum);
  if (column == 0) at.delta[i % a.heads * a.q_rows + i / a.heads] = sum;
}

// kWarps warps of 16 keys each; kQueries queries at a time, which fly in while those before them are used. A block sums
// kColumns columns of the results: where they do not fit in registers, blocks along y share them.
template <class T, int kDim, int kColumns, int kWarps, int kQueries>
__global__ void attention_backward_keys(Operands<T> at, AttentionShape a) {
  constexpr int kThreads = kWarps * kWarp, kRows = kWarps * 16, N = kQueries / 8, D = kColumns / 8, kTile = kQueries * kRowBytes<kDim>;
  const BackwardPlace place(a.kv_heads, false);
  const Slot slot(a.cu_k, a.sequences, place.slot, kRows);
  const Span span(a, slot.sequence);
  const int j0 = slot.row, rows = span.keys - j0, group = a.heads / a.kv_heads, head0 = place.head * group;
  if (rows <= 0) return;
  const int q_stride = a.heads * a.dim, k_stride = a.kv_heads * a.dim;
  const int64_t k_at = (span.k0 + j0) * k_stride + place.head * a.dim;

  // Two tiles of q, do, lse and delta: one is used while the other is filled.
  constexpr int kK = 0, kV = kK + kRows * kRowBytes<kDim>, kQ = kV + kRows * kRowBytes<kDim>, kDo = kQ + 2 * kTile;
  constexpr int kLse = kDo + 2 * kTile, kDelta = kLse + 2 * kQueries * 4;
  auto* shared = dynamic_shared<unsigned char>();
  const SharedAddress begin = shared_address(shared);
  const Lane<kDim> lane(begin);
  const int warp_row = static_cast<int>(threadIdx.x) / kWarp * 16, j_warp = j0 + warp_row;
  const int i_begin = first_query(span, j0), i_end = end_of_queries(span, j0, kRows);
  const int tiles = std::max(0, (i_end - i_begin + kQueries - 1) / kQueries), column = static_cast<int>(blockIdx.y) * kColumns;
  const auto load = [&](int n) {  // tile n of the tiles of all heads of the group
    const int head = head0 + n / tiles, i = i_begin + n % tiles * kQueries, into = n % 2;
    const int64_t from = (span.q0 + i) * q_stride + head * a.dim, row = head * a.q_rows + span.q0 + i;
    load_tile<kQueries, kDim, kThreads>(begin + kQ + into * kTile, at.q + from, q_stride, span.queries - i, a.dim);
    load_tile<kQueries, kDim, kThreads>(begin + kDo + into * kTile, at.d_o + from, q_stride, span.queries - i, a.dim);
    const int r = static_cast<int>(threadIdx.x);
    if (r < kQueries) {
      const bool valid = r < span.queries - i;
      copy_async_4(begin + kLse + (into * kQueries + r) * 4, at.lse + row + r, valid);
      copy_async_4(begin + kDelta + (into * kQueries + r) * 4, at.delta + row + r, valid);
    }
  };
  float dk[1][D][4], dv[1][D][4];
  clear(dk), clear(dv);

  load_tile<kRows, kDim, kThreads>(begin + kK, at.k + k_at, k_stride, rows, a.dim);
  load_tile<kRows, kDim, kThreads>(begin + kV, at.v + k_at, k_stride, rows, a.dim);
  if (tiles > 0) load(0);
  copy_async_commit();
  for (int n = 0; n < tiles * group; ++n) {
    copy_async_wait<0>();
    __syncthreads();  // tile n is here, and the one before it is not needed any more
    if (n + 1 < tiles * group) load(n + 1);
    copy_async_commit();
    const int i = i_begin + n % tiles * kQueries;
    if (j_warp >= span.keys || !span.some(i, kQueries, j_warp, 16)) continue;
    const int q_tile = kQ + n % 2 * kTile, do_tile = kDo + n % 2 * kTile;
    const float* lse = reinterpret_cast<const float*>(shared + kLse) + n % 2 * kQueries;
    const float* delta = reinterpret_cast<const float*>(shared + kDelta) + n % 2 * kQueries;
    float p[1][N][4], ds[1][N][4];
    scores<T>(p, lane.left(kK + warp_row * kRowBytes<kDim>), lane.right(q_tile));
#pragma unroll
    for (int c = 0; c < N; ++c)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int query = lane_column(c) + e % 2;
        p[0][c][e] = exp2_approximate(p[0][c][e] * (a.scale * kLog2e) - base_of(lse[query]));
      }
    if (!span.all(i, kQueries, j_warp, 16)) mask<true>(p, span, i, j_warp, 0.0f);
    accumulate<T>(dv, p, lane.left(do_tile + column * 2));
    scores<T>(ds, lane.left(kV + warp_row * kRowBytes<kDim>), lane.right(do_tile));
#pragma unroll
    for (int c = 0; c < N; ++c)
#pragma unroll
      for (int e = 0; e < 4; ++e) ds[0][c][e] = p[0][c][e] * (ds[0][c][e] - delta[lane_column(c) + e % 2]);
    accumulate<T>(dk, ds, lane.left(q_tile + column * 2));
  }
  copy_async_wait<0>();
  __syncthreads();  // no key is still on its way to where the results go
  const int64_t to = k_at + warp_row * k_stride + column;
  store_rows<kDim>(at.dk + to, k_stride, rows - warp_row, a.dim - column, dk, a.scale,
                   shared + kK + warp_row * kRowBytes<kDim>);
  store_rows<kDim>(at.dv + to, k_stride, rows - warp_row, a.dim - column, dv, 1.0f,
                   shared + kV + warp_row * kRowBytes<kDim>);
}

// kWarps warps of 16 queries each; kKeys keys and values at a time, which fly in while those before them are used.
template <class T, int kDim, int kWarps, int kKeys>
__global__ void attention_backward_queries(Operands<T> at, AttentionShape a) {
  constexpr int kThreads = kWarps * kWarp, kRows = kWarps * 16, N = kKeys / 8, D = kDim / 8, kTile = kKeys * kRowBytes<kDim>;
  const BackwardPlace place(a.heads, true);
  const int head = place.head, kv_head = head / (a.heads / a.kv_heads);
  const Slot slot(a.cu_q, a.sequences, place.slot, kRows);
  const Span span(a, slot.sequence);
  const int i0 = slot.row, rows = span.queries - i0;
  if (rows <= 0) return;
  const int q_stride = a.heads * a.dim, k_stride = a.kv_heads * a.dim;
  const int64_t q_at = (span.q0 + i0) * q_stride + head * a.dim, k_at = span.k0 * k_stride + kv_head * a.dim;

  constexpr int kQ = 0, kDo = kQ + kRows * kRowBytes<kDim>, kK = kDo + kRows * kRowBytes<kDim>, kV = kK + 2 * kTile;
  auto* shared = dynamic_shared<unsigned char>();
  const SharedAddress begin = shared_address(shared);
  const Lane<kDim> lane(begin);
  const int warp_row = static_cast<int>(threadIdx.x) / kWarp * 16, i_warp = i0 + warp_row;
  const int j_begin = span.first_key(i0) / kKeys * kKeys, j_end = std::min(span.keys, span.last_key(i0 + std::min(rows, kRows) - 1) + 1);
  const auto load = [&](int j) {
    const int into = j / kKeys % 2;
    load_tile<kKeys, kDim, kThreads>(begin + kK + into * kTile, at.k + k_at + static_cast<int64_t>(j) * k_stride, k_stride, span.keys - j, a.dim);
    load_tile<kKeys, kDim, kThreads>(begin + kV + into * kTile, at.v + k_at + static_cast<int64_t>(j) * k_stride, k_stride, span.keys - j, a.dim);
  };
  float dq[1][D][4], base[2], delta[2];
  clear(dq);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = warp_row + lane_row(0, half);
    const int64_t from = head * a.q_rows + span.q0 + i0 + row;
    base[half] = row < rows ? base_of(at.lse[from]) : 0.0f;
    delta[half] = row < rows ? at.delta[from] : 0.0f;
  }

  load_tile<kRows, kDim, kThreads>(begin + kQ, at.q + q_at, q_stride, rows, a.dim);
  load_tile<kRows, kDim, kThreads>(begin + kDo, at.d_o + q_at, q_stride, rows, a.dim);
  if (j_begin < j_end) load(j_begin);
  copy_async_commit();
  for (int j = j_begin; j < j_end; j += kKeys) {
    copy_async_wait<0>();
    __syncthreads();  // this tile is here, and the one before it is not needed any more
    if (j + kKeys < j_end) load(j + kKeys);
    copy_async_commit();
    if (i_warp >= span.queries || !span.some(i_warp, 16, j, kKeys)) continue;
    const int k_tile = kK + j / kKeys % 2 * kTile, v_tile = kV + j / kKeys % 2 * kTile;
    float p[1][N][4], ds[1][N][4];
    scores<T>(p, lane.left(kQ + warp_row * kRowBytes<kDim>), lane.right(k_tile));
    scores<T>(ds, lane.left(kDo + warp_row * kRowBytes<kDim>), lane.right(v_tile));
#pragma unroll
    for (int c = 0; c < N; ++c)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        p[0][c][e] = exp2_approximate(p[0][c][e] * (a.scale * kLog2e) - base[e / 2]);
        ds[0][c][e] = p[0][c][e] * (ds[0][c][e] - delta[e / 2]);
      }
    if (!span.all(i_warp, 16, j, kKeys)) mask<false>(ds, span, i_warp, j, 0.0f);
    accumulate<T>(dq, ds, lane.left(k_tile));
  }
  copy_async_wait<0>();
  __syncthreads();  // no query is still on its way to where the results go
  store_rows<kDim>(at.dq + q_at + warp_row * q_stride, q_stride, rows - warp_row, a.dim, dq, a.scale,
                   shared + kQ + warp_row * kRowBytes<kDim>);
}

template <class T, int kDim, int kColumns, int kQueries, int kKeys>
void launch_backward(const AttentionBackward& op, const Operands<T>& at, const AttentionShape& a, CudaStream& stream) {
  constexpr int kWarps = 4, kRows = kWarps * 16;
  constexpr size_t kKeysBytes = (2 * kRows + 4 * kQueries) * kDim * sizeof(T) + 4 * kQueries * sizeof(float);
  constexpr size_t kQueriesBytes = (2 * kRows + 4 * kKeys) * kDim * sizeof(T);
  const int64_t slots = tile_slots(op.rows, op.sequences, kRows);
  const dim3 of_keys(attention_blocks(AttentionBackward::name, slots, op.kv_heads), kDim / kColumns);
  launch(attention_backward_keys<T, kDim, kColumns, kWarps, kQueries>, of_keys, kWarps * kWarp, kKeysBytes, stream, at, a);
  launch(attention_backward_queries<T, kDim, kWarps, kKeys>, attention_blocks(AttentionBackward::name, slots, op.heads), kWarps * kWarp,
         kQueriesBytes, stream, at, a);
}

// ---- the same without tensor cores ----

template <class T, int kDim, int kTile>
__global__ void attention_backward_keys_plain(Operands<T> at, AttentionShape a) {
  constexpr int R = kTile / 16, C = kDim / 16;
  const BackwardPlace place(a.kv_heads, false);
  const Slot slot(a.cu_k, a.sequences, place.slot, kTile);
  const Span span(a, slot.sequence);
  const int j0 = slot.row, rows = span.keys - j0, group = a.heads / a.kv_heads;
  if (rows <= 0) return;
  const int64_t q_stride = static_cast<int64_t>(a.heads) * a.dim, k_stride = static_cast<int64_t>(a.kv_heads) * a.dim;
  const int64_t k_at = (span.k0 + j0) * k_stride + place.head * a.dim;
  float* k_tile = dynamic_shared<float>();
  float* v_tile = k_tile + plain::kTileFloats<kTile, kDim>;
  float* q_tile = v_tile + plain::kTileFloats<kTile, kDim>;
  float* do_tile = q_tile + plain::kTileFloats<kTile, kDim>;
  float* p_tile = do_tile + plain::kTileFloats<kTile, kDim>;
  float* ds_tile = p_tile + plain::kTileFloats<kTile, kTile>;
  float dk[R][C] = {}, dv[R][C] = {};

  plain::load_tile<kTile, kDim>(k_tile, at.k + k_at, k_stride, rows, a.dim);
  plain::load_tile<kTile, kDim>(v_tile, at.v + k_at, k_stride, rows, a.dim);
  const int i_begin = first_query(span, j0), i_end = end_of_queries(span, j0, kTile);
  for (int head = place.head * group; head < (place.head + 1) * group; ++head)
    for (int i = i_begin; i < i_end; i += kTile) {
      const int64_t from = (span.q0 + i) * q_stride + head * a.dim, row = head * a.q_rows + span.q0 + i;
      __syncthreads();  // the last tile has been used
      plain::load_tile<kTile, kDim>(q_tile, at.q + from, q_stride, span.queries - i, a.dim);
      plain::load_tile<kTile, kDim>(do_tile, at.d_o + from, q_stride, span.queries - i, a.dim);
      __syncthreads();
      float p[R][R], ds[R][R];
      plain::scores<kDim>(p, k_tile, q_tile, a.dim);
      plain::scores<kDim>(ds, v_tile, do_tile, a.dim);
#pragma unroll
      for (int c = 0; c < R; ++c) {
        const int query = plain::tx() + c * 16;
        const bool there = i + query < span.queries;
        const float base = there ? base_of(at.lse[row + query]) : 0.0f, delta = there ? at.delta[row + query] : 0.0f;
#pragma unroll
        for (int r = 0; r < R; ++r) {
          const bool seen = there && span.sees(i + query, j0 + plain::ty() + r * 16);
          p[r][c] = seen ? exp2f(p[r][c] * (a.scale * kLog2e) - base) : 0.0f;
          ds[r][c] = p[r][c] * (ds[r][c] - delta);
        }
      }
      plain::share(p_tile, p);
      plain::share(ds_tile, ds);
      __syncthreads();
      plain::accumulate<kDim>(dv, p_tile, do_tile);
      plain::accumulate<kDim>(dk, ds_tile, q_tile);
    }
  plain::store_rows(at.dk + k_at, k_stride, rows, a.dim, dk, a.scale);
  plain::store_rows(at.dv + k_at, k_stride, rows, a.dim, dv, 1.0f);
}

template <class T, int kDim, int kTile>
__global__ void attention_backward_queries_plain(Operands<T> at, AttentionShape a) {
  constexpr int R = kTile / 16, C = kDim / 16;
  const BackwardPlace place(a.heads, true);
  const int head = place.head, kv_head = head / (a.heads / a.kv_heads);
  const Slot slot(a.cu_q, a.sequences, place.slot, kTile);
  const Span span(a, slot.sequence);
  const int i0 = slot.row, rows = span.queries - i0;
  if (rows <= 0) return;
  const int64_t q_stride = static_cast<int64_t>(a.heads) * a.dim, k_stride = static_cast<int64_t>(a.kv_heads) * a.dim;
  const int64_t q_at = (span.q0 + i0) * q_stride + head * a.dim, k_at = span.k0 * k_stride + kv_head * a.dim;
  const int64_t row_at = head * a.q_rows + span.q0 + i0;
  float* q_tile = dynamic_shared<float>();
  float* do_tile = q_tile + plain::kTileFloats<kTile, kDim>;
  float* k_tile = do_tile + plain::kTileFloats<kTile, kDim>;
  float* v_tile = k_tile + plain::kTileFloats<kTile, kDim>;
  float* ds_tile = v_tile + plain::kTileFloats<kTile, kDim>;
  float dq[R][C] = {};

  plain::load_tile<kTile, kDim>(q_tile, at.q + q_at, q_stride, rows, a.dim);
  plain::load_tile<kTile, kDim>(do_tile, at.d_o + q_at, q_stride, rows, a.dim);
  const int j_begin = span.first_key(i0) / kTile * kTile, j_end = std::min(span.keys, span.last_key(i0 + std::min(rows, kTile) - 1) + 1);
  for (int j = j_begin; j < j_end; j += kTile) {
    __syncthreads();  // the last tile has been used
    plain::load_tile<kTile, kDim>(k_tile, at.k + k_at + j * k_stride, k_stride, span.keys - j, a.dim);
    plain::load_tile<kTile, kDim>(v_tile, at.v + k_at + j * k_stride, k_stride, span.keys - j, a.dim);
    __syncthreads();
    float p[R][R], ds[R][R];
    plain::scores<kDim>(p, q_tile, k_tile, a.dim);
    plain::scores<kDim>(ds, do_tile, v_tile, a.dim);
#pragma unroll
    for (int r = 0; r < R; ++r) {
      const int row = plain::ty() + r * 16;
      const bool there = row < rows;
      const float base = there ? base_of(at.lse[row_at + row]) : 0.0f, delta = there ? at.delta[row_at + row] : 0.0f;
#pragma unroll
      for (int c = 0; c < R; ++c) {
        const bool seen = there && span.sees(i0 + row, j + plain::tx() + c * 16);
        ds[r][c] = seen ? exp2f(p[r][c] * (a.scale * kLog2e) - base) * (ds[r][c] - delta) : 0.0f;
      }
    }
    plain::share(ds_tile, ds);
    __syncthreads();
    plain::accumulate<kDim>(dq, ds_tile, k_tile);
  }
  plain::store_rows(at.dq + q_at, q_stride, rows, a.dim, dq, a.scale);
}

template <class T, int kDim, int kTile>
void launch_plain(const AttentionBackward& op, const Operands<T>& at, const AttentionShape& a, CudaStream& stream) {
  constexpr size_t kBytes = (4 * plain::kTileFloats<kTile, kDim> + 2 * plain::kTileFloats<kTile, kTile>) * sizeof(float);
  const int64_t slots = tile_slots(op.rows, op.sequences, kTile);
  launch(attention_backward_keys_plain<T, kDim, kTile>, attention_blocks(AttentionBackward::name, slots, op.kv_heads), plain::kThreads, kBytes,
         stream, at, a);
  launch(attention_backward_queries_plain<T, kDim, kTile>, attention_blocks(AttentionBackward::name, slots, op.heads), plain::kThreads, kBytes,
         stream, at, a);
}

}  // namespace

AttentionShape shape_of(const AttentionBackward& op) {
  return attention_shape(AttentionBackward::name, op.cu, op.cu, op.sequences, op.heads, op.kv_heads, op.head_dim, op.window, op.rows, op.scale,
                         op.dq, op.dk, op.dv, op.d_o, op.o, op.q, op.k, op.v);
}

template <class T>
static Operands<T> operands(const AttentionBackward& op, float* delta) {
  return {op.dq.as<T>(), op.dk.as<T>(), op.dv.as<T>(), op.d_o.as<T>(), op.o.as<T>(), op.q.as<T>(), op.k.as<T>(), op.v.as<T>(),
          op.lse.as<float>(), delta};
}

void attention_delta(const AttentionBackward& op, float* delta, CudaStream& stream) {
  const int64_t blocks = ceil_div(op.rows * op.heads, kDeltaThreads / kWarp);
  with_floating(op.q.dtype, [&](auto t) {
    using T = decltype(t);
    launch(delta_of_rows<T>, attention_blocks(AttentionBackward::name, blocks, 1), kDeltaThreads, 0, stream, operands<T>(op, delta), shape_of(op));
  });
}

void run(const AttentionBackward& op, CudaStream& stream) {
  if (op.rows == 0) return;
  const AttentionShape a = shape_of(op);
  const auto scratch = stream.scratch(static_cast<size_t>(op.heads * op.rows) * sizeof(float));
  auto* delta = static_cast<float*>(scratch->data());
  attention_delta(op, delta, stream);
  with_floating(op.q.dtype, [&](auto t) {
    using T = decltype(t);
    const Operands<T> at = operands<T>(op, delta);
    if constexpr (sizeof(T) == 2) {
      if (suits_hopper(a, op.q.dtype, op.rows, stream)) return run_hopper(op, a, delta, stream);
      if (a.aligned && a.dim <= 64) return launch_backward<T, 64, 64, 64, 64>(op, at, a, stream);
      if (a.aligned && a.dim <= 96) return launch_backward<T, 96, 96, 64, 64>(op, at, a, stream);
      if (a.aligned && a.dim <= 128) return launch_backward<T, 128, 128, 32, 64>(op, at, a, stream);
      if (a.aligned) return launch_backward<T, 256, 128, 16, 16>(op, at, a, stream);
    }
    if (a.dim <= 64) return launch_plain<T, 64, 32>(op, at, a, stream);
    if (a.dim <= 128) return launch_plain<T, 128, 32>(op, at, a, stream);
    return launch_plain<T, 256, 16>(op, at, a, stream);
  });
}

}  // namespace rz::cuda
