#include "check.h"
#include "ops/qkv.h"

static void test_qkv(DType t, int64_t rows, int64_t heads, int64_t head_dim) {
  const std::string name = begin(label("split_qkv", t, {rows, heads, head_dim}));
  const int64_t n = rows * heads * head_dim;
  Buffer qkv = random_buffer(t, 3 * n), q(t, n), k(t, n), v(t, n), back(t, 3 * n);
  rz::SplitQkv split{q.view(), k.view(), v.view(), qkv.view(), rows, heads, head_dim};
  execute(split);
  Values fused = qkv.values(), want[3] = {Values(n), Values(n), Values(n)};
  for (int64_t i = 0; i < n; ++i)
    for (int64_t part = 0; part < 3; ++part)
      want[part][i] = fused[(i / head_dim * 3 + part) * head_dim + i % head_dim];
  report(name, q.values() == want[0] && k.values() == want[1] && v.values() == want[2]);
  expect_thread_independent(name, v, [&] { execute(split); });
  rz::MergeQkv merge{back.view(), q.view(), k.view(), v.view(), rows, heads, head_dim};
  execute(merge);
  report(label("merge_qkv", t, {rows, heads, head_dim}), back.same_bits(qkv));
  expect_thread_independent(name + " merged", back, [&] { execute(merge); });
}

static void test_all() {
  for (DType t : {DType::Float32, DType::BFloat16, DType::Float16}) {
    test_qkv(t, 1, 1, 1);
    test_qkv(t, 7, 3, 5);
    test_qkv(t, 300, 4, 64);
  }
}
static Test registered(test_all);
