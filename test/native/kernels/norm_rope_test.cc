#include "check.h"
#include "ops/embedding.h"
#include "ops/rms_norm.h"
#include "ops/rope.h"

static void test_rms_norm(DType t, DType wide, int64_t rows, int64_t dim) {
  const std::string name = begin(label("rms_norm", t, {rows, dim}));
  Buffer x = random_buffer(t, rows * dim), w = random_buffer(t, dim), dy = random_buffer(t, rows * dim);
  Buffer y(t, rows * dim), rstd(DType::Float32, rows);
  Values xv = x.values(), wv = w.values(), dyv = dy.values();
  Values y_want(rows * dim), dx_want(rows * dim), dw_want(dim), rstd_want(rows);
  double dw_terms = 0;  // in a short column dw is what is left of them
  for (int64_t r = 0; r < rows; ++r) {
    double sum = 0, dot = 0;
    for (int64_t i = 0; i < dim; ++i) sum += xv[r * dim + i] * xv[r * dim + i];
    double scale = rstd_want[r] = 1 / std::sqrt(sum / dim + 1e-5);
    for (int64_t i = 0; i < dim; ++i) dot += dyv[r * dim + i] * wv[i] * xv[r * dim + i] * scale;
    for (int64_t i = 0; i < dim; ++i) {
      double hat = xv[r * dim + i] * scale;
      y_want[r * dim + i] = hat * wv[i];
      dx_want[r * dim + i] = scale * (dyv[r * dim + i] * wv[i] - hat * dot / dim);
      dw_want[i] += dyv[r * dim + i] * hat;
      dw_terms += std::pow(dyv[r * dim + i] * hat, 2);
    }
  }
  execute(rz::RmsNormForward{y.view(), rstd.view(), x.view(), w.view(), rows, dim, 1e-5f});
  expect_close(name, y, y_want);
  expect_close(name + " rstd", rstd, rstd_want);
  for (bool accumulate : {false, true}) {
    Buffer dx(t, rows * dim), dw = random_buffer(wide, dim);
    Values dw_sum = dw_want, old = dw.values();
    for (int64_t i = 0; accumulate && i < dim; ++i) dw_sum[i] += old[i];
    auto run = [&](View weight_gradient) {
      execute(rz::RmsNormBackward{dx.view(), weight_gradient, dy.view(), x.view(), w.view(), rstd.view(), View{}, rows, dim, accumulate});
    };
    run(dw.view());
    expect_close(name + " dx", dx, dx_want, 0.1 * std::sqrt(rows * dim));
    expect_close(name + " dw", dw, dw_sum, std::sqrt(dw_terms), t);
    Buffer frozen(t, rows * dim);
    std::swap(dx, frozen);
    run(View{});
    report(name + " frozen weight: same dx", dx.same_bits(frozen) || t == DType::Float32);
    if (!accumulate) expect_thread_independent(name, dw, [&] { run(dw.view()); });
    // The gradient from other uses of x, which is kept or becomes the sum.
    Buffer earlier = random_buffer(t, rows * dim), onto = earlier, sum(t, rows * dim), dw_again(wide, dim);
    Values sum_want = earlier.values();
    for (size_t i = 0; i < sum_want.size(); ++i) sum_want[i] += dx_want[i];
    for (View weight_gradient : {dw_again.view(), View{}}) {
      Buffer to = onto;
      for (Buffer* dx_sum : {&sum, &to})
        execute(rz::RmsNormBackward{dx_sum->view(), weight_gradient, dy.view(), x.view(), w.view(), rstd.view(),
                                    dx_sum == &to ? to.view() : earlier.view(), rows, dim, false});
      expect_close(name + " dx and earlier", sum, sum_want);
      expect_close(name + " dx onto earlier", to, sum_want);
      report(name + " keeps the earlier gradient", earlier.same_bits(onto));
    }
    expect_close(name + " dw beside an earlier gradient", dw_again, dw_want, std::sqrt(dw_terms), t);
  }
}

static void test_rope(DType t, int64_t rows, int64_t heads, int64_t head_dim, int64_t rotary) {
  const std::string name = begin(label("rope", t, {rows, heads, head_dim, rotary}));
  int64_t half = rotary / 2;
  Values positions(rows), inv(half);
  for (int64_t r = 0; r < rows; ++r) positions[r] = static_cast<double>(r * 37 % 4001);
  for (int64_t i = 0; i < half; ++i) inv[i] = static_cast<float>(std::pow(10000.0, -2.0 * i / rotary));
  Buffer p(DType::Int64, positions), f(DType::Float32, inv), cos(DType::Float32, rows * half),
      sin(DType::Float32, rows * half);
  execute(rz::RopeTable{cos.view(), sin.view(), p.view(), f.view(), rows, half, 1.0f});
  Values cos_want(rows * half), sin_want(rows * half);
  for (int64_t i = 0; i < rows * half; ++i) {
    float angle = static_cast<float>(positions[i / half]) * static_cast<float>(inv[i % half]);
    cos_want[i] = static_cast<float>(std::cos(static_cast<double>(angle)));
    sin_want[i] = static_cast<float>(std::sin(static_cast<double>(angle)));
  }
  report("rope_table is correctly rounded", cos.values() == cos_want && sin.values() == sin_want);

  Buffer x = random_buffer(t, rows * heads * head_dim), y(t, x.numel);
  Values xv = x.values(), want = xv, c = Buffer(t, cos_want).values(), s = Buffer(t, sin_want).values();
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t h = 0; h < heads; ++h)
      for (int64_t i = 0; i < half; ++i) {
        int64_t at = (r * heads + h) * head_dim + i;
        want[at] = xv[at] * c[r * half + i] - xv[at + half] * s[r * half + i];
        want[at + half] = xv[at + half] * c[r * half + i] + xv[at] * s[r * half + i];
      }
  execute(rz::Rope{y.view(), x.view(), cos.view(), sin.view(), rows, heads, head_dim, rotary, false});
  expect_close(name, y, want);
  Buffer same = x;
  execute(rz::Rope{same.view(), same.view(), cos.view(), sin.view(), rows, heads, head_dim, rotary, false});
  report(name + " in place", same.same_bits(y));
  execute(rz::Rope{y.view(), y.view(), cos.view(), sin.view(), rows, heads, head_dim, rotary, true});
  expect_close(name + " inverse", y, xv);
}

// Taken apart and put together, queries and keys are what a rotation of their own gives, and values what they were.
static void test_split_rope(DType t, int64_t rows, int64_t heads, int64_t kv_heads, int64_t head_dim, int64_t rotary) {
  const std::string name = begin(label("split_rope", t, {rows, heads, kv_heads, head_dim, rotary}));
  const int64_t width = (heads + 2 * kv_heads) * head_dim, wide = heads * head_dim, narrow = kv_heads * head_dim;
  Buffer qkv = random_buffer(t, rows * width), q(t, rows * wide), k(t, rows * narrow), v(t, rows * narrow);
  Buffer cos = random_buffer(DType::Float32, rows * rotary / 2), sin = random_buffer(DType::Float32, rows * rotary / 2);
  rz::SplitRope split{q.view(), k.view(), v.view(), qkv.view(), cos.view(), sin.view(), rows, heads, kv_heads, head_dim, rotary};
  execute(split);
  Values fused = qkv.values();
  const auto columns = [&](int64_t from, int64_t count) {
    Values of(rows * count);
    for (int64_t i = 0; i < rows * count; ++i) of[i] = fused[i / count * width + from + i % count];
    return Buffer(t, of);
  };
  const auto turned = [&](Buffer x, int64_t of, bool inverse) {
    Buffer y(t, x.numel);
    execute(rz::Rope{y.view(), x.view(), cos.view(), sin.view(), rows, of, head_dim, rotary, inverse});
    return y;
  };
  expect_close(name + " q", q, turned(columns(0, wide), heads, false).values());
  expect_close(name + " k", k, turned(columns(wide, narrow), kv_heads, false).values());
  report(name + " v", v.same_bits(columns(wide + narrow, narrow)));
  expect_thread_independent(name, q, [&] { execute(split); });

  Buffer dq = random_buffer(t, rows * wide), dk = random_buffer(t, rows * narrow), dv = random_buffer(t, rows * narrow);
  Buffer merged(t, rows * width);
  rz::MergeRope merge{merged.view(), dq.view(), dk.view(), dv.view(), cos.view(), sin.view(), rows, heads, kv_heads, head_dim, rotary};
  execute(merge);
  fused = merged.values();
  expect_close(name + " merged q", columns(0, wide), turned(dq, heads, true).values());
  expect_close(name + " merged k", columns(wide, narrow), turned(dk, kv_heads, true).values());
  report(name + " merged v", dv.same_bits(columns(wide + narrow, narrow)));
  expect_thread_independent(name + " merged", merged, [&] { execute(merge); });
}

// `first` and `part`: the rows of the table that are here.
static void test_embedding(DType t, DType wide, int64_t rows, int64_t vocab, int64_t dim, int64_t first, int64_t part) {
  const std::string name = begin(label("embedding", t, {rows, vocab, dim, first, part}));
  Values id_values(rows);
  for (int64_t r = 0; r < rows; ++r) id_values[r] = static_cast<double>((r * 7 + r * r) % vocab / 2);
  Buffer ids(DType::Int64, id_values), table = random_buffer(t, part * dim), out(t, rows * dim);
  Buffer d_out = random_buffer(t, rows * dim);
  auto local = [&](int64_t r) { return static_cast<int64_t>(id_values[r]) - first; };
  auto inside = [&](int64_t r) { return local(r) >= 0 && local(r) < part; };
  execute(rz::EmbeddingForward{out.view(), ids.view(), table.view(), rows, part, dim, first});
  Values want(rows * dim), tv = table.values(), dv = d_out.values();
  for (int64_t i = 0; i < rows * dim; ++i) want[i] = inside(i / dim) ? tv[local(i / dim) * dim + i % dim] : 0;
  report(name, out.values() == want);
  for (bool accumulate : {false, true}) {
    Buffer d_table = random_buffer(wide, part * dim);
    Values sums = accumulate ? d_table.values() : Values(part * dim);
    for (int64_t i = 0; i < rows * dim; ++i)
      if (inside(i / dim)) sums[local(i / dim) * dim + i % dim] += dv[i];
    execute(rz::EmbeddingBackward{d_table.view(), ids.view(), d_out.view(), rows, part, dim, first, accumulate});
    expect_close(label("embedding d_table", wide, {rows, vocab, dim, first, part, accumulate}), d_table, sums);
  }
}

static void test_all() {
  for (DType t : {DType::Float32, DType::BFloat16, DType::Float16}) {
    for (DType wide : {t, DType::Float32}) {
      test_rms_norm(t, wide, 1, 1);
      test_rms_norm(t, wide, 67, 80);
      test_rms_norm(t, wide, 33, 513);
      test_rms_norm(t, wide, 70, 1030);
      test_rms_norm(t, wide, 3, 8200);  // more than 512 threads a row on a device
      test_embedding(t, wide, 50, 23, 17, 0, 23);
      test_embedding(t, wide, 300, 11, 520, 0, 11);
      test_embedding(t, wide, 50, 23, 17, 0, 4);
      test_embedding(t, wide, 50, 23, 17, 4, 4);
      test_embedding(t, wide, 300, 2000, 70, 900, 400);
      test_embedding(t, wide, 20, 23, 17, 60, 4);  // nothing of it here
    }
    test_rope(t, 9, 3, 16, 16);
    test_rope(t, 31, 2, 64, 64);
    test_rope(t, 31, 2, 80, 32);
    test_rope(t, 5, 1, 24, 6);
    test_split_rope(t, 1, 1, 1, 2, 2);
    test_split_rope(t, 31, 4, 2, 64, 64);
    test_split_rope(t, 9, 3, 1, 80, 32);
    test_split_rope(t, 300, 2, 2, 24, 6);
    test_split_rope(t, 5, 2, 1, 5, 0);
  }
}
static Test registered(test_all);
