// Flash-style causal attention of one sequence and one key/value head: blocks of queries against blocks of keys, online
// softmax in float32 in base 2. A few query rows at a time go through scores, softmax and product while their tile is in
// the first-level cache; they take only the key columns that one of them sees, so causal blocks cost what they show.
#include <math.h>

#include "cpu/simd/pack.h"
#include "cpu/simd/table.h"

namespace rz::cpu::RZ_ISA {

constexpr int64_t kQueries = 96;                     // rows of a query block
constexpr int64_t kPackedFloats = int64_t{1} << 20;  // keys and values stay packed for a sequence up to this size
constexpr float kLog2e = 1.44269504088896341f, kLn2 = 0.693147180559945309f;

// Where the rows of a sequence are, and which keys a query sees: first_key(i) … last_key(i).
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

struct Range {
  int64_t begin, end;
};
// Columns of the key block at j0 that a query sees.
RZ_INLINE Range visible(const Span& span, int64_t query, int64_t j0) {
  int64_t end = max64(0, min64(min64(kKeys, span.keys - j0), span.last_key(query) - j0 + 1));
  return {min64(end, max64(0, span.first_key(query) - j0)), end};
}
// Whole vectors of columns that some of the rows query … query + m - 1 see.
RZ_INLINE Range columns_of(const Span& span, int64_t query, int64_t m, int64_t j0) {
  int64_t begin = visible(span, query, j0).begin / kLanes * kLanes;
  int64_t end = round_up(visible(span, query + m - 1, j0).end, kLanes);
  return {begin, max64(begin, end)};
}
// A row keeps the columns that its query sees.
RZ_INLINE void mask_row(float* row, Range columns, Range see, float otherwise) {
  for (int64_t c = columns.begin; c < columns.end; c += kLanes) {
    vi lane = vlanes() + static_cast<int32_t>(c);
    vi seen = (lane >= static_cast<int32_t>(see.begin)) & (lane < static_cast<int32_t>(see.end));
    vstore(row + c, seen ? vload(row + c) : splat(otherwise));
  }
}
RZ_INLINE bool partial(Range columns, Range see) { return see.begin > columns.begin || see.end < columns.end; }

RZ_INLINE int64_t padded_dim(const AttentionShape& a) { return round_up(a.head_dim, kLanes); }

// ---- forward ----

static int64_t attention_forward_scratch(const AttentionShape& a, int64_t max_keys) {
  int64_t ld = padded_dim(a), blocks = (max_keys + kKeys - 1) / kKeys, block = 2 * kKeys * ld;
  if (blocks * block > kPackedFloats) blocks = 1;
  return blocks * block + kQueries * (2 * ld + kLanes) + kQueries + kLanes + 2 * kTileRows * kKeys;
}

// Online softmax of m rows: probabilities replace the raw scores; the running maxima (base 2, scaled), sums (lane by lane)
// and rows of o follow. `top` may be read and written back up to kLanes beyond m.
RZ_INLINE void softmax_rows(int64_t m, float* s, Range columns, float scale, float* top, float* sum, float* o,
                            int64_t ld) {
  constexpr int64_t kRows = round_up(kTileRows, kLanes);
  float row_top[kRows], base[kRows], shrink[kRows];
  for (int64_t r = 0; r < m; ++r) {
    vf best = splat(-INFINITY);
    for (int64_t c = columns.begin; c < columns.end; c += kLanes) best = vmax(vload(s + r * kKeys + c), best);
    row_top[r] = vtop(best);
  }
  for (int64_t r = m; r < kRows; ++r) row_top[r] = -INFINITY;
  for (int64_t r = 0; r < m; r += kLanes) {
    vf old = vload(top + r), best = vmax(vload(row_top + r) * scale, old);
    vf from = best == -INFINITY ? vf{} : best;
    vstore(top + r, best), vstore(base + r, from), vstore(shrink + r, vexp2(old - from));
  }
  for (int64_t r = 0; r < m; ++r, s += kKeys, sum += kLanes, o += ld) {
    vf part = {};
    for (int64_t c = columns.begin; c < columns.end; c += kLanes) {
      vf p = vexp2(vload(s + c) * scale - base[r]);
      vstore(s + c, p);
      part += p;
    }
    vstore(sum, vload(sum) * shrink[r] + part);
    if (shrink[r] != 1.0f)
      for (int64_t c = 0; c < ld; c += kLanes) vstore(o + c, vload(o + c) * shrink[r]);
  }
}

template <class T, class W>
static void forward(const AttentionForwardArgs& a, int64_t sequence, int64_t kv_head, int64_t first_block,
                    int64_t last_block, float* scratch) {
  const Span span = Span::of(a, sequence);
  const int64_t dim = a.head_dim, ld = padded_dim(a), group = a.heads / a.kv_heads, block = 2 * kKeys * ld;
  const int64_t dim_words = (dim + W::kStep - 1) / W::kStep;
  const int64_t q_stride = a.heads * dim, k_stride = a.kv_heads * dim;
  const T* k = static_cast<const T*>(a.k) + span.k0 * k_stride + kv_head * dim;
  const T* v = static_cast<const T*>(a.v) + span.k0 * k_stride + kv_head * dim;
  const float scale = a.scale * kLog2e;
  float *q_tile = scratch, *o_tile = q_tile + kQueries * ld, *sum = o_tile + kQueries * ld;
  float *top = sum + kQueries * kLanes, *s = top + kQueries + kLanes, *p_words = s + kTileRows * kKeys, *packed = p_words + kTileRows * kKeys;
  const bool keep = (span.keys + kKeys - 1) / kKeys * block <= kPackedFloats;
  int64_t packed_to = -1;  // key blocks below this one, from the first that was used on, are in `packed`

  for (int64_t b = first_block; b < last_block; ++b) {
    const int64_t i0 = b * kQueries, rows = min64(kQueries, span.queries - i0);
    const int64_t j_begin = max64(0, span.first_key(i0)) / kKeys;
    const int64_t j_end = (max64(0, min64(span.keys, span.last_key(i0 + rows - 1) + 1)) + kKeys - 1) / kKeys;
    for (int64_t g = 0; g < group; ++g) {
      const int64_t head = kv_head * group + g;
      const T* q = static_cast<const T*>(a.q) + (span.q0 + i0) * q_stride + head * dim;
      T* o = static_cast<T*>(a.o) + (span.q0 + i0) * q_stride + head * dim;
      W::along(q_tile, ld, q, q_stride, rows, dim);
      for (int64_t i = 0; i < rows * ld; i += kLanes) vstore(o_tile + i, vf{});
      for (int64_t i = 0; i < rows; ++i) vstore(sum + i * kLanes, vf{});
      for (int64_t i = 0; i < rows; i += kLanes) vstore(top + i, splat(-INFINITY));

      for (int64_t j = j_begin; j < j_end; ++j) {
        const int64_t j0 = j * kKeys;
        float* kt = packed + (keep ? j * block : 0);
        float* vt = kt + kKeys * ld;
        if (!keep || j >= packed_to) {
          const int64_t keys = min64(kKeys, span.keys - j0), filled = (keys + W::kStep - 1) / W::kStep;
          pack_transposed<W>(kt, k + j0 * k_stride, k_stride, keys, dim);
          W::across(vt, ld, v + j0 * k_stride, k_stride, keys, dim);
          for (int64_t i = filled * ld; i < round_up(keys, kLanes) / W::kStep * ld; i += kLanes) vstore(vt + i, vf{});
          packed_to = j + 1;
        }
        for (int64_t i = 0; i < rows; i += kTileRows) {
          const int64_t m = min64(kTileRows, rows - i);
          const Range columns = columns_of(span, i0 + i, m, j0);
          const int64_t n = columns.end - columns.begin;
          if (n == 0) continue;
          tile_rows<typename W::Product, false>(m, n, dim_words, {q_tile + i * ld, ld, 1}, kt + columns.begin, kKeys,
                                                s + columns.begin, kKeys);
          for (int64_t r = 0; r < m; ++r) {
            const Range see = visible(span, i0 + i + r, j0);
            if (partial(columns, see)) mask_row(s + r * kKeys, columns, see, -INFINITY);
          }
          softmax_rows(m, s, columns, scale, top + i, sum + i * kLanes, o_tile + i * ld, ld);
          const float* p = W::row_words(p_words, s + columns.begin, m, n);
          tile_rows<typename W::Product, true>(m, ld, n / W::kStep, {p, kKeys, 1},
                                               vt + columns.begin / W::kStep * ld, ld, o_tile + i * ld, ld);
        }
      }
      for (int64_t i = 0; i < rows; ++i) {
        const float total = vsum(vload(sum + i * kLanes)), factor = total == 0 ? 0.0f : 1.0f / total;
        map(dim, o + i * q_stride, [=](vf x) { return x * factor; }, o_tile + i * ld);
        a.lse[head * a.q_rows + span.q0 + i0 + i] = top[i] * kLn2 + logf(total);
      }
    }
  }
}

// ---- backward ----

static int64_t attention_backward_scratch(const AttentionShape& a, int64_t max_rows) {
  int64_t ld = padded_dim(a), group = a.heads / a.kv_heads;
  return group * (max_rows * (ld + 1) + kLanes) + 5 * kKeys * ld + 4 * kQueries * ld + 4 * kQueries * kKeys +
         kTileRows * kKeys;
}

template <class T, class W>
static void backward(const AttentionBackwardArgs& a, int64_t sequence, int64_t kv_head, float* scratch) {
  using Product = typename W::Product;
  const Span span = Span::of(a, sequence);
  const int64_t dim = a.head_dim, ld = padded_dim(a), group = a.heads / a.kv_heads, rows_all = span.queries;
  const int64_t dim_words = (dim + W::kStep - 1) / W::kStep, offset = span.keys - span.queries;
  const int64_t q_stride = a.heads * dim, k_stride = a.kv_heads * dim;
  const int64_t q_base = span.q0 * q_stride + kv_head * group * dim, k_base = span.k0 * k_stride + kv_head * dim;
  const float scale = a.scale * kLog2e;
  float* dq_all = scratch;                                                     // (group, rows, ld)
  float* delta = dq_all + group * rows_all * ld;                               // (group, rows)
  float *kt = delta + round_up(group * rows_all, kLanes), *vt = kt + kKeys * ld, *k_tile = vt + kKeys * ld;
  float *dk_tile = k_tile + kKeys * ld, *dv_tile = dk_tile + kKeys * ld;
  float *q_tile = dv_tile + kKeys * ld, *do_tile = q_tile + kQueries * ld;          // summed along
  float *q_across = do_tile + kQueries * ld, *do_across = q_across + kQueries * ld;  // summed across
  float *p = do_across + kQueries * ld, *ds = p + kQueries * kKeys, *ds_row = ds + kQueries * kKeys;
  float *p_words = ds_row + kTileRows * kKeys, *ds_words = p_words + kQueries * kKeys;

  for (int64_t g = 0; g < group; ++g)
    for (int64_t i = 0; i < rows_all; ++i) {
      const T* o = static_cast<const T*>(a.o) + q_base + i * q_stride + g * dim;
      const T* d_o = static_cast<const T*>(a.d_o) + q_base + i * q_stride + g * dim;
      vf dot = {};
      int64_t c = 0;
      for (; c + kLanes <= dim; c += kLanes) dot += vget(o + c) * vget(d_o + c);
      if (c < dim) dot += vget_part(o + c, dim - c) * vget_part(d_o + c, dim - c);
      delta[g * rows_all + i] = vsum(dot);
    }
  for (int64_t i = 0; i < group * rows_all * ld; i += kLanes) vstore(dq_all + i, vf{});

  for (int64_t j0 = 0; j0 < span.keys; j0 += kKeys) {
    const int64_t keys = min64(kKeys, span.keys - j0), filled = (keys + W::kStep - 1) / W::kStep;
    const T* k = static_cast<const T*>(a.k) + k_base + j0 * k_stride;
    const T* v = static_cast<const T*>(a.v) + k_base + j0 * k_stride;
    pack_transposed<W>(kt, k, k_stride, keys, dim);
    pack_transposed<W>(vt, v, k_stride, keys, dim);
    W::across(k_tile, ld, k, k_stride, keys, dim);
    for (int64_t i = filled * ld; i < round_up(keys, kLanes) / W::kStep * ld; i += kLanes) vstore(k_tile + i, vf{});
    for (int64_t i = 0; i < keys * ld; i += kLanes) vstore(dk_tile + i, vf{}), vstore(dv_tile + i, vf{});

    // Queries that see a key of this block: from the one that sits on its first key to the last in the window.
    const int64_t i_begin = max64(0, j0 - offset) / kQueries * kQueries;
    const int64_t i_end = span.window > 0 ? min64(rows_all, j0 + keys - 1 + span.window - offset) : rows_all;
    for (int64_t g = 0; g < group; ++g) {
      const float* lse = a.lse + (kv_head * group + g) * a.q_rows + span.q0;
      for (int64_t i0 = i_begin; i0 < i_end; i0 += kQueries) {
        const int64_t rows = min64(kQueries, rows_all - i0), at = q_base + i0 * q_stride + g * dim;
        const T *q = static_cast<const T*>(a.q) + at, *d_o = static_cast<const T*>(a.d_o) + at;
        W::along(q_tile, ld, q, q_stride, rows, dim);
        W::along(do_tile, ld, d_o, q_stride, rows, dim);
        const float *q_down = q_tile, *do_down = do_tile;
        if constexpr (W::kStep > 1) {
          W::across(q_across, ld, q, q_stride, rows, dim);
          W::across(do_across, ld, d_o, q_stride, rows, dim);
          q_down = q_across, do_down = do_across;
        }
        for (int64_t i = 0; i < rows; i += kTileRows) {
          const int64_t m = min64(kTileRows, rows - i);
          const Range columns = columns_of(span, i0 + i, m, j0);
          const int64_t n = columns.end - columns.begin;
          tile_rows<Product, false>(m, n, dim_words, {q_tile + i * ld, ld, 1}, kt + columns.begin, kKeys,
                                    p + i * kKeys + columns.begin, kKeys);
          tile_rows<Product, false>(m, n, dim_words, {do_tile + i * ld, ld, 1}, vt + columns.begin, kKeys,
                                    ds + i * kKeys + columns.begin, kKeys);
          for (int64_t r = 0; r < m; ++r) {
            float *pr = p + (i + r) * kKeys, *dr = ds + (i + r) * kKeys;
            const Range see = visible(span, i0 + i + r, j0);
            const float l = lse[i0 + i + r], top = l == -INFINITY ? 0.0f : l * kLog2e;
            const float mean = delta[g * rows_all + i0 + i + r];
            if (partial(columns, see)) mask_row(pr, columns, see, -INFINITY);
            for (int64_t c = 0; c < columns.begin; c += kLanes) vstore(pr + c, vf{}), vstore(dr + c, vf{});
            for (int64_t c = columns.begin; c < columns.end; c += kLanes) {
              vf e = vexp2(vload(pr + c) * scale - top);
              vstore(pr + c, e);
              vstore(dr + c, e * (vload(dr + c) - mean) * a.scale);
            }
            for (int64_t c = columns.end; c < kKeys; c += kLanes) vstore(pr + c, vf{}), vstore(dr + c, vf{});
          }
          const float* words = W::row_words(ds_row, ds + i * kKeys + columns.begin, m, n);
          tile_rows<Product, true>(m, ld, n / W::kStep, {words, kKeys, 1}, k_tile + columns.begin / W::kStep * ld, ld,
                                   dq_all + (g * rows_all + i0 + i) * ld, ld);
        }
        const float *p_down = W::column_words(p_words, p, rows), *ds_down = W::column_words(ds_words, ds, rows);
        for (int64_t c = 0; c < keys; c += kTileRows) {
          const int64_t m = min64(kTileRows, keys - c);
          // Rows of the block that see one of these keys, in words.
          int64_t first = max64(0, j0 + c - offset - i0) / W::kStep, last = (rows + W::kStep - 1) / W::kStep;
          if (span.window > 0)
            last = min64(last, (max64(0, j0 + c + m - 1 + span.window - offset - i0) + W::kStep - 1) / W::kStep);
          if (first >= last) continue;
          const int64_t skip = first * kKeys + c;
          tile_rows<Product, true>(m, ld, last - first, {p_down + skip, 1, kKeys}, do_down + first * ld, ld,
                                   dv_tile + c * ld, ld);
          tile_rows<Product, true>(m, ld, last - first, {ds_down + skip, 1, kKeys}, q_down + first * ld, ld,
                                   dk_tile + c * ld, ld);
        }
      }
    }
    auto same = [](vf x) { return x; };
    for (int64_t r = 0; r < keys; ++r) {
      map(dim, static_cast<T*>(a.dk) + k_base + (j0 + r) * k_stride, same, dk_tile + r * ld);
      map(dim, static_cast<T*>(a.dv) + k_base + (j0 + r) * k_stride, same, dv_tile + r * ld);
    }
  }
  for (int64_t g = 0; g < group; ++g)
    for (int64_t i = 0; i < rows_all; ++i)
      map(dim, static_cast<T*>(a.dq) + q_base + i * q_stride + g * dim, [](vf x) { return x; },
          dq_all + (g * rows_all + i) * ld);
}

void add_attention(Table& t) {
  t.attention_q_block = kQueries;
  t.attention_forward_scratch = attention_forward_scratch;
  t.attention_backward_scratch = attention_backward_scratch;
#if defined(__AVX512BF16__)
  t.attention_forward[1] = forward<bf16, BFloat16Words>;
  t.attention_backward[1] = backward<bf16, BFloat16Words>;
#else
  t.attention_forward[0] = forward<float, Float32Words<float>>;
  t.attention_forward[1] = forward<bf16, Float32Words<bf16>>;
  t.attention_forward[2] = forward<f16, Float32Words<f16>>;
  t.attention_backward[0] = backward<float, Float32Words<float>>;
  t.attention_backward[1] = backward<bf16, Float32Words<bf16>>;
  t.attention_backward[2] = backward<f16, Float32Words<f16>>;
#endif
}

}  // namespace rz::cpu::RZ_ISA
