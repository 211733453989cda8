// Flash-style causal attention of one sequence and one key/value head: blocks of queries against blocks of keys, online
// softmax in float32. Keys and values are packed into padded float32 tiles, transposed where a product wants it.
// Queries of all heads of the group are handled one head after another against the packed keys.
#include <math.h>

#include "cpu/simd/microkernel.h"
#include "cpu/simd/table.h"
#include "cpu/simd/vec.h"

namespace rz::cpu::RZ_ISA {

constexpr int64_t kQueries = 96, kKeys = 64;  // rows of a query block and of a key block
constexpr int64_t kPackedFloats = int64_t{1} << 20;  // keys and values kept packed for a whole sequence up to this size

// Where the rows of a sequence are, and which keys a query sees: [first_key(i), last_key(i)].
struct Span {
  int64_t q0, queries, k0, keys, window;
  RZ_INLINE Span of(const AttentionShape& a, int64_t s) {
    return {a.cu_q[s], a.cu_q[s + 1] - a.cu_q[s], a.cu_k[s], a.cu_k[s + 1] - a.cu_k[s], a.window};
  }
  __attribute__((always_inline)) int64_t last_key(int64_t i) const { return i + keys - queries; }
  __attribute__((always_inline)) int64_t first_key(int64_t i) const {
    return window > 0 ? max64(0, last_key(i) - window + 1) : 0;
  }
};

template <class T>
RZ_INLINE void pack_rows(float* to, int64_t ld, const T* from, int64_t stride, int64_t rows, int64_t dim) {
  for (int64_t r = 0; r < rows; ++r) {
#pragma omp simd
    for (int64_t i = 0; i < dim; ++i) to[r * ld + i] = load(from[r * stride + i]);
    for (int64_t i = dim; i < ld; ++i) to[r * ld + i] = 0;
  }
}

// to (dim, kKeys): columns past `rows` are zero.
template <class T>
RZ_INLINE void pack_transposed(float* to, const T* from, int64_t stride, int64_t rows, int64_t dim) {
  constexpr int64_t kStep = 16;
  for (int64_t i = 0; i < dim; i += kStep) {
    int64_t width = min64(kStep, dim - i);
    for (int64_t r = 0; r < kKeys; r += kStep) {
      float block[kStep][kStep] = {};
      for (int64_t y = 0; y < min64(kStep, rows - r); ++y)
        for (int64_t x = 0; x < width; ++x) block[y][x] = load(from[(r + y) * stride + i + x]);
      for (int64_t x = 0; x < width; ++x)
#pragma omp simd
        for (int64_t y = 0; y < kStep; ++y) to[(i + x) * kKeys + r + y] = block[y][x];
    }
  }
}

RZ_INLINE int64_t padded_dim(const AttentionShape& a) { return round_up(a.head_dim, kLanes); }

// Scores of `rows` queries from `first` on against the key block at j0, without the scale.
RZ_INLINE void scores(float* s, const float* q, int64_t ldq, const float* kt, int64_t rows, int64_t dim) {
  tile_product<false>(rows, kKeys, dim, {q, ldq, 1}, kt, kKeys, s, kKeys);
}

struct Range {
  int64_t begin, end;  // columns of the block that the query sees
};
RZ_INLINE Range visible(const Span& span, int64_t query, int64_t j0) {
  int64_t end = min64(min64(kKeys, span.keys - j0), span.last_key(query) - j0 + 1);
  int64_t begin = max64(0, span.first_key(query) - j0);
  return {begin, max64(begin, end)};
}

// ---- forward ----

static int64_t attention_forward_scratch(const AttentionShape& a, int64_t max_keys) {
  int64_t ld = padded_dim(a), blocks = (max_keys + kKeys - 1) / kKeys, block = 2 * kKeys * ld;
  if (blocks * block > kPackedFloats) blocks = 1;
  return blocks * block + kQueries * (2 * ld + kKeys + 2);
}

template <class T>
static void attention_forward(const AttentionForwardArgs& a, int64_t sequence, int64_t kv_head, int64_t first_block,
                              int64_t last_block, float* scratch) {
  const Span span = Span::of(a, sequence);
  const int64_t dim = a.head_dim, ld = padded_dim(a), group = a.heads / a.kv_heads, block = 2 * kKeys * ld;
  const int64_t q_stride = a.heads * dim, k_stride = a.kv_heads * dim;
  const T* k = static_cast<const T*>(a.k) + span.k0 * k_stride + kv_head * dim;
  const T* v = static_cast<const T*>(a.v) + span.k0 * k_stride + kv_head * dim;
  float *q_tile = scratch, *o_tile = q_tile + kQueries * ld, *s = o_tile + kQueries * ld;
  float *top = s + kQueries * kKeys, *sum = top + kQueries, *packed = sum + kQueries;
  const bool keep = (span.keys + kKeys - 1) / kKeys * block <= kPackedFloats;
  int64_t packed_from = 0, packed_to = 0;  // key blocks that are in `packed`

  for (int64_t b = first_block; b < last_block; ++b) {
    const int64_t i0 = b * kQueries, rows = min64(kQueries, span.queries - i0);
    const int64_t j_begin = max64(0, span.first_key(i0)) / kKeys;
    const int64_t j_end = (max64(0, min64(span.keys, span.last_key(i0 + rows - 1) + 1)) + kKeys - 1) / kKeys;
    for (int64_t g = 0; g < group; ++g) {
      const int64_t head = kv_head * group + g;
      const T* q = static_cast<const T*>(a.q) + (span.q0 + i0) * q_stride + head * dim;
      T* o = static_cast<T*>(a.o) + (span.q0 + i0) * q_stride + head * dim;
      pack_rows(q_tile, ld, q, q_stride, rows, dim);
      for (int64_t i = 0; i < rows * ld; ++i) o_tile[i] = 0;
      for (int64_t i = 0; i < rows; ++i) top[i] = -INFINITY, sum[i] = 0;

      for (int64_t j = j_begin; j < j_end; ++j) {
        float* kt = packed + (keep ? j * block : 0);
        float* vt = kt + kKeys * ld;
        if (!keep || j < packed_from || j >= packed_to) {
          const int64_t keys = min64(kKeys, span.keys - j * kKeys);
          pack_transposed(kt, k + j * kKeys * k_stride, k_stride, keys, dim);
          pack_rows(vt, ld, v + j * kKeys * k_stride, k_stride, keys, dim);
          for (int64_t i = keys * ld; i < kKeys * ld; ++i) vt[i] = 0;
          if (packed_from == packed_to) packed_from = j;
          packed_to = j + 1;
        }
        scores(s, q_tile, ld, kt, rows, dim);
        for (int64_t i = 0; i < rows; ++i) {
          const Range see = visible(span, i0 + i, j * kKeys);
          float* row = s + i * kKeys;
          if (see.begin == see.end) {
            for (int64_t c = 0; c < kKeys; ++c) row[c] = 0;
            continue;
          }
          for (int64_t c = 0; c < see.begin; ++c) row[c] = -INFINITY;
          for (int64_t c = see.end; c < kKeys; ++c) row[c] = -INFINITY;
          float best = -INFINITY;
#pragma omp simd reduction(max : best)
          for (int64_t c = 0; c < kKeys; ++c) best = maxf(row[c], best);
          best = maxf(best * a.scale, top[i]);
          float part = 0;
#pragma omp simd reduction(+ : part)
          for (int64_t c = 0; c < kKeys; ++c) {
            float p = exp_f(row[c] * a.scale - best);
            row[c] = p;
            part += p;
          }
          if (best != top[i]) {
            float shrink = exp_f(top[i] - best);
            sum[i] *= shrink;
            float* out = o_tile + i * ld;
#pragma omp simd
            for (int64_t c = 0; c < ld; ++c) out[c] *= shrink;
            top[i] = best;
          }
          sum[i] += part;
        }
        tile_product<true>(rows, ld, min64(kKeys, span.keys - j * kKeys), {s, kKeys, 1}, vt, ld, o_tile, ld);
      }
      for (int64_t i = 0; i < rows; ++i) {
        float factor = sum[i] > 0 ? 1.0f / sum[i] : 0.0f;
        if (sum[i] != sum[i]) factor = sum[i];  // NaN stays NaN
#pragma omp simd
        for (int64_t c = 0; c < dim; ++c) store(o[i * q_stride + c], o_tile[i * ld + c] * factor);
        a.lse[head * a.q_rows + span.q0 + i0 + i] = top[i] + logf(sum[i]);
      }
    }
  }
}

// ---- backward ----

static int64_t attention_backward_scratch(const AttentionShape& a, int64_t max_rows) {
  int64_t ld = padded_dim(a), group = a.heads / a.kv_heads;
  return group * max_rows * (ld + 1) + 6 * kKeys * ld + 2 * kQueries * ld + 2 * kQueries * kKeys;
}

template <class T>
static void attention_backward(const AttentionBackwardArgs& a, int64_t sequence, int64_t kv_head, float* scratch) {
  const Span span = Span::of(a, sequence);
  const int64_t dim = a.head_dim, ld = padded_dim(a), group = a.heads / a.kv_heads, rows_all = span.queries;
  const int64_t q_stride = a.heads * dim, k_stride = a.kv_heads * dim;
  const int64_t q_offset = span.q0 * q_stride + kv_head * group * dim, k_offset = span.k0 * k_stride + kv_head * dim;
  float* dq_all = scratch;                         // (group, rows, ld)
  float* delta = dq_all + group * rows_all * ld;   // (group, rows)
  float *kt = delta + group * rows_all, *vt = kt + kKeys * ld, *k_tile = vt + kKeys * ld;
  float *dk_tile = k_tile + kKeys * ld, *dv_tile = dk_tile + kKeys * ld;
  float *q_tile = dv_tile + kKeys * ld, *do_tile = q_tile + kQueries * ld;
  float *p = do_tile + kQueries * ld, *ds = p + kQueries * kKeys;

  for (int64_t g = 0; g < group; ++g)
    for (int64_t i = 0; i < rows_all; ++i) {
      const T* o = static_cast<const T*>(a.o) + q_offset + i * q_stride + g * dim;
      const T* d_o = static_cast<const T*>(a.d_o) + q_offset + i * q_stride + g * dim;
      float dot = 0;
#pragma omp simd reduction(+ : dot)
      for (int64_t c = 0; c < dim; ++c) dot += load(o[c]) * load(d_o[c]);
      delta[g * rows_all + i] = dot;
    }
  for (int64_t i = 0; i < group * rows_all * ld; ++i) dq_all[i] = 0;

  for (int64_t j0 = 0; j0 < span.keys; j0 += kKeys) {
    const int64_t keys = min64(kKeys, span.keys - j0);
    const T* k = static_cast<const T*>(a.k) + k_offset + j0 * k_stride;
    const T* v = static_cast<const T*>(a.v) + k_offset + j0 * k_stride;
    pack_transposed(kt, k, k_stride, keys, dim);
    pack_transposed(vt, v, k_stride, keys, dim);
    pack_rows(k_tile, ld, k, k_stride, keys, dim);
    for (int64_t i = 0; i < kKeys * ld; ++i) dk_tile[i] = dv_tile[i] = 0;

    // Queries that see a key of this block: from the one that sits on its first key to the last in the window.
    const int64_t i_begin = max64(0, j0 - (span.keys - span.queries)) / kQueries * kQueries;
    const int64_t i_end = span.window > 0 ? min64(rows_all, j0 + keys - 1 + span.window - (span.keys - span.queries))
                                          : rows_all;
    for (int64_t g = 0; g < group; ++g) {
      const float* lse = a.lse + (kv_head * group + g) * a.q_rows + span.q0;
      for (int64_t i0 = i_begin; i0 < i_end; i0 += kQueries) {
        const int64_t rows = min64(kQueries, rows_all - i0), at = q_offset + i0 * q_stride + g * dim;
        pack_rows(q_tile, ld, static_cast<const T*>(a.q) + at, q_stride, rows, dim);
        pack_rows(do_tile, ld, static_cast<const T*>(a.d_o) + at, q_stride, rows, dim);
        scores(p, q_tile, ld, kt, rows, dim);
        scores(ds, do_tile, ld, vt, rows, dim);
        for (int64_t i = 0; i < rows; ++i) {
          const Range see = visible(span, i0 + i, j0);
          float *p_row = p + i * kKeys, *ds_row = ds + i * kKeys;
          const float l = lse[i0 + i], mean = delta[g * rows_all + i0 + i];
#pragma omp simd
          for (int64_t c = 0; c < kKeys; ++c) {
            float e = exp_f(p_row[c] * a.scale - l);
            e = c >= see.begin && c < see.end ? e : 0.0f;
            p_row[c] = e;
            ds_row[c] = e * (ds_row[c] - mean) * a.scale;
          }
        }
        tile_product<true>(keys, ld, rows, {p, 1, kKeys}, do_tile, ld, dv_tile, ld);
        tile_product<true>(keys, ld, rows, {ds, 1, kKeys}, q_tile, ld, dk_tile, ld);
        tile_product<true>(rows, ld, keys, {ds, kKeys, 1}, k_tile, ld, dq_all + (g * rows_all + i0) * ld, ld);
      }
    }
    T* dk = static_cast<T*>(a.dk) + k_offset + j0 * k_stride;
    T* dv = static_cast<T*>(a.dv) + k_offset + j0 * k_stride;
    for (int64_t r = 0; r < keys; ++r)
#pragma omp simd
      for (int64_t c = 0; c < dim; ++c) {
        store(dk[r * k_stride + c], dk_tile[r * ld + c]);
        store(dv[r * k_stride + c], dv_tile[r * ld + c]);
      }
  }
  for (int64_t g = 0; g < group; ++g)
    for (int64_t i = 0; i < rows_all; ++i) {
      T* dq = static_cast<T*>(a.dq) + q_offset + i * q_stride + g * dim;
      const float* from = dq_all + (g * rows_all + i) * ld;
#pragma omp simd
      for (int64_t c = 0; c < dim; ++c) store(dq[c], from[c]);
    }
}

void add_attention(Table& t) {
  t.attention_q_block = kQueries;
  t.attention_forward_scratch = attention_forward_scratch;
  t.attention_backward_scratch = attention_backward_scratch;
  RZ_ENTRY(t, attention_forward);
  RZ_ENTRY(t, attention_backward);
}

}  // namespace rz::cpu::RZ_ISA
