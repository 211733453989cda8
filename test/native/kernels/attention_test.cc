#include "check.h"
#include "ops/attention.h"

struct Case {
  std::vector<int64_t> q_lengths, k_lengths;
  int64_t heads, kv_heads, dim, window;
  int spoilt = -1;  // the sequence whose values are no numbers: no other may see them
};

static Values cumulative(const std::vector<int64_t>& lengths) {
  Values cu = {0};
  for (int64_t n : lengths) cu.push_back(cu.back() + static_cast<double>(n));
  return cu;
}

// The same at a multiple of 16 bytes.
static Buffer aligned_copy(const Buffer& from) {
  for (;;) {
    Buffer to(from.type, from.numel);
    if (reinterpret_cast<uintptr_t>(to.data()) % 16 != 0) continue;
    std::copy_n(from.data(), from.numel * size_of(from.type), to.data());
    return to;
  }
}

static void spoil(Buffer& x, double begin, double end) {
  for (auto i = static_cast<int64_t>(begin); i < static_cast<int64_t>(end); ++i) write(x.type, x.data() + i * size_of(x.type), NAN);
}

// aligned: all operands begin at multiples of 16 bytes, which tensor cores want; else some do.
static void test_attention(DType t, const Case& c, bool aligned = false) {
  Values cu_q = cumulative(c.q_lengths), cu_k = cumulative(c.k_lengths);
  auto q_rows = static_cast<int64_t>(cu_q.back()), k_rows = static_cast<int64_t>(cu_k.back());
  auto sequences = static_cast<int64_t>(c.q_lengths.size());
  int64_t H = c.heads, K = c.kv_heads, D = c.dim;
  auto longest = *std::max_element(c.q_lengths.begin(), c.q_lengths.end());
  const std::string name = begin(label(aligned ? "attention, aligned," : "attention", t, {sequences, longest, H, K, D, c.window}));
  const float scale = static_cast<float>(1.5 / std::sqrt(static_cast<double>(D)));
  auto place = [&](const Buffer& b) { return aligned ? aligned_copy(b) : b; };
  Buffer q = place(random_buffer(t, q_rows * H * D)), k = place(random_buffer(t, k_rows * K * D));
  Buffer v = place(random_buffer(t, k_rows * K * D)), d_o = place(random_buffer(t, q_rows * H * D));
  if (c.spoilt >= 0) {
    for (Buffer* x : {&q, &d_o}) spoil(*x, cu_q[c.spoilt] * H * D, cu_q[c.spoilt + 1] * H * D);
    for (Buffer* x : {&k, &v}) spoil(*x, cu_k[c.spoilt] * K * D, cu_k[c.spoilt + 1] * K * D);
  }
  Buffer o = place(Buffer(t, q_rows * H * D)), lse(DType::Float32, H * q_rows);
  Buffer bq(DType::Int32, cu_q), bk(DType::Int32, cu_k);
  Values qv = q.values(), kv = k.values(), vv = v.values(), dv = d_o.values();
  Values o_want(qv.size()), lse_want(H * q_rows), dq(qv.size()), dk(kv.size()), dv_want(kv.size());

  for (int64_t s = 0; s < sequences; ++s)
    for (int64_t h = 0; h < H; ++h)
      for (int64_t i = 0; i < c.q_lengths[s]; ++i) {
        int64_t row = static_cast<int64_t>(cu_q[s]) + i, last = i + c.k_lengths[s] - c.q_lengths[s];
        int64_t first = c.window > 0 ? std::max<int64_t>(0, last - c.window + 1) : 0;
        int64_t g = h / (H / K), base = (row * H + h) * D, k0 = static_cast<int64_t>(cu_k[s]);
        Values p(c.k_lengths[s] + 1), dp(c.k_lengths[s] + 1);
        double top = -INFINITY, sum = 0, delta = 0;
        auto key = [&](int64_t j) { return ((k0 + j) * K + g) * D; };
        for (int64_t j = first; j <= last; ++j) {
          for (int64_t d = 0; d < D; ++d) p[j] += qv[base + d] * kv[key(j) + d];
          p[j] *= static_cast<double>(scale);
          top = std::max(top, p[j]);
        }
        for (int64_t j = first; j <= last; ++j) sum += p[j] = std::exp(p[j] - top);
        lse_want[h * q_rows + row] = top + std::log(sum);
        for (int64_t j = first; j <= last; ++j) {
          p[j] /= sum;
          for (int64_t d = 0; d < D; ++d) {
            o_want[base + d] += p[j] * vv[key(j) + d];
            dp[j] += dv[base + d] * vv[key(j) + d];
            dv_want[key(j) + d] += p[j] * dv[base + d];
          }
          delta += p[j] * dp[j];
        }
        for (int64_t j = first; j <= last; ++j)
          for (int64_t d = 0; d < D; ++d) {
            double ds = p[j] * (dp[j] - delta) * static_cast<double>(scale);
            dq[base + d] += ds * kv[key(j) + d];
            dk[key(j) + d] += ds * qv[base + d];
          }
      }

  rz::AttentionForward forward{o.view(), lse.view(), q.view(),  k.view(), v.view(), bq.view(), bk.view(),
                               q_rows,   k_rows,     sequences, H,        K,        D,         c.window, scale};
  execute(forward);
  expect_close(name + " o", o, o_want);
  expect_close(name + " lse", lse, lse_want);
  if (t == DType::Float32) expect_thread_independent(name + " o", o, [&] { execute(forward); });
  if (c.q_lengths != c.k_lengths) return;
  Buffer gq = place(Buffer(t, q.numel)), gk = place(Buffer(t, k.numel)), gv = place(Buffer(t, v.numel));
  rz::AttentionBackward backward{gq.view(), gk.view(), gv.view(),  d_o.view(), o.view(),  q.view(),
                                 k.view(),  v.view(),  lse.view(), bq.view(),  q_rows,    sequences,
                                 H,         K,         D,          c.window,   scale};
  execute(backward);
  expect_close(name + " dq", gq, dq, std::sqrt(q.numel));
  expect_close(name + " dk", gk, dk, std::sqrt(q.numel));
  expect_close(name + " dv", gv, dv_want);
  if (t == DType::Float32) expect_thread_independent(name + " dk", gk, [&] { execute(backward); });
}

static void test_all() {
  std::vector<int64_t> packed = {5, 70, 1, 131, 33};
  const Case cases[] = {
      {{1}, {1}, 1, 1, 16, 0},
      {{7}, {7}, 2, 1, 24, 0},
      {packed, packed, 4, 2, 32, 0},
      {packed, packed, 2, 2, 80, 0},
      {{200}, {200}, 3, 1, 64, 0},
      {{330}, {330}, 2, 1, 64, 50},
      {packed, packed, 4, 1, 20, 3},
      {packed, packed, 2, 2, 128, 64},
      {{257}, {257}, 1, 1, 5, 1},
      {{1}, {300}, 4, 2, 64, 0},        // generation: one query, many keys
      {{3, 100}, {90, 170}, 2, 1, 64, 0},
      {{40}, {300}, 2, 1, 32, 20},
      {{0, 5, 0}, {0, 5, 0}, 2, 1, 16, 0},
      {{5, 4}, {2, 4}, 2, 2, 16, 0},    // queries before the first key see nothing
  };
  for (DType t : {DType::Float32, DType::BFloat16, DType::Float16})
    for (const Case& c : cases) test_attention(t, c);
  for (DType t : {DType::Float32, DType::BFloat16}) test_attention(t, {{70, 5}, {70, 5}, 2, 1, 64, 0, 1});
  // Small, since the emulator takes long over them.
  const std::vector<int64_t> edges = {1, 17, 70};
  test_attention(DType::BFloat16, {edges, edges, 2, 1, 64, 0}, true);
  test_attention(DType::Float16, {edges, edges, 1, 1, 64, 5}, true);
  test_attention(DType::BFloat16, {{130}, {130}, 1, 1, 64, 70}, true);
  test_attention(DType::BFloat16, {{5, 4}, {2, 4}, 2, 2, 16, 0}, true);
  test_attention(DType::Float16, {{3, 20}, {90, 70}, 2, 1, 96, 0}, true);
  test_attention(DType::BFloat16, {{40}, {40}, 2, 1, 96, 0}, true);
  test_attention(DType::BFloat16, {{70}, {70}, 1, 1, 128, 0}, true);
  test_attention(DType::Float16, {{40}, {40}, 2, 1, 72, 5}, true);
  test_attention(DType::BFloat16, {{20}, {20}, 1, 1, 256, 0}, true);
  // Head sizes that Hopper has kernels for: more tiles than are in flight, of which some are seen whole and some not at all.
  for (DType t : {DType::BFloat16, DType::Float16})
    for (int64_t dim : {64, 96, 128}) {
      if (t == DType::BFloat16) test_attention(t, {{300}, {300}, 2, 1, dim, 0}, true);
      test_attention(t, {{3, 200, 0, 65}, {3, 200, 0, 65}, 2, 2, dim, 90}, true);
      test_attention(t, {{2, 150}, {1, 290}, 4, 2, dim, 0}, true);
      test_attention(t, {{70, 5}, {70, 5}, 2, 1, dim, 0, 1}, true);
    }
  if (device_under_test()) return;
  test_attention(DType::BFloat16, {{1100}, {1100}, 1, 1, 16, 0});
  // More keys than are kept packed.
  test_attention(DType::Float32, {{97}, {9000}, 2, 1, 64, 0});
  test_attention(DType::BFloat16, {{97}, {9000}, 2, 1, 64, 8000});
}
static Test registered(test_all);
