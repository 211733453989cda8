#include "check.h"
#include "ops/linear.h"

// c (m, n) = a (m, k) · b (k, n), given as functions of the indices.
template <class A, class B>
static Values product(int64_t m, int64_t n, int64_t k, A a, B b) {
  Values c(m * n);
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < n; ++j)
      for (int64_t p = 0; p < k; ++p) c[i * n + j] += a(i, p) * b(p, j);
  return c;
}

static void test_linear(DType t, DType wide, int64_t rows, int64_t in, int64_t out, bool bias) {
  const std::string name = begin(label("linear", t, {rows, in, out}) + " to " + rz::name_of(wide));
  Buffer x = random_buffer(t, rows * in), w = random_buffer(t, out * in, 0.1), b = random_buffer(t, out);
  Buffer dy = random_buffer(t, rows * out), y(wide, rows * out);
  Values xv = x.values(), wv = w.values(), bv = b.values(), dyv = dy.values();

  auto y_want = product(rows, out, in, [&](auto i, auto p) { return xv[i * in + p]; },
                        [&](auto p, auto j) { return wv[j * in + p]; });
  if (bias)
    for (int64_t i = 0; i < rows * out; ++i) y_want[i] += bv[i % out];
  execute(rz::LinearForward{y.view(), x.view(), w.view(), bias ? b.view() : View{}, {}, rows, in, out});
  expect_close(name + " forward", y, y_want);
  Buffer residual = random_buffer(wide, rows * out), onto = residual;
  Values sum_want = residual.values();
  double terms = 0;  // a sum may cancel
  for (double term : sum_want) terms += term * term;
  for (size_t i = 0; i < sum_want.size(); ++i) sum_want[i] += y_want[i];
  execute(rz::LinearForward{y.view(), x.view(), w.view(), bias ? b.view() : View{}, residual.view(), rows, in, out});
  expect_close(name + " forward and residual", y, sum_want, std::sqrt(terms));
  report(name + " keeps the residual", residual.same_bits(onto));
  execute(rz::LinearForward{onto.view(), x.view(), w.view(), bias ? b.view() : View{}, onto.view(), rows, in, out});
  expect_close(name + " forward onto the residual", onto, sum_want, std::sqrt(terms));

  auto dx_want = product(rows, in, out, [&](auto i, auto p) { return dyv[i * out + p]; },
                         [&](auto p, auto j) { return wv[p * in + j]; });
  auto dw_want = product(out, in, rows, [&](auto i, auto p) { return dyv[p * out + i]; },
                         [&](auto p, auto j) { return xv[p * in + j]; });
  Values db_want(out);
  for (int64_t i = 0; i < rows * out; ++i) db_want[i % out] += dyv[i];
  for (bool accumulate : {false, true}) {
    Buffer dx = random_buffer(t, rows * in), dw = random_buffer(wide, out * in), db = random_buffer(wide, out);
    Values dx_sum = dx_want, dw_sum = dw_want, db_sum = db_want;
    if (accumulate) {
      Values old = dx.values();
      for (size_t i = 0; i < old.size(); ++i) dx_sum[i] += old[i];
      old = dw.values();
      for (size_t i = 0; i < old.size(); ++i) dw_sum[i] += old[i];
      old = db.values();
      for (size_t i = 0; i < old.size(); ++i) db_sum[i] += old[i];
    }
    const Buffer earlier = dx;
    execute(rz::LinearBackwardInput{dx.view(), dy.view(), w.view(), accumulate ? dx.view() : View{}, rows, in, out});
    expect_close(name + (accumulate ? " dx +=" : " dx"), dx, dx_sum);
    if (accumulate) {
      Buffer other(t, rows * in), from = earlier;
      execute(rz::LinearBackwardInput{other.view(), dy.view(), w.view(), from.view(), rows, in, out});
      expect_close(name + " dx and earlier", other, dx_sum);
      report(name + " keeps the earlier gradient", from.same_bits(earlier));
    }
    execute(rz::LinearBackwardWeight{dw.view(), bias ? db.view() : View{}, dy.view(), x.view(), rows, in, out,
                                          accumulate});
    expect_close(name + (accumulate ? " dw +=" : " dw"), dw, dw_sum);
    if (bias) expect_close(name + (accumulate ? " db +=" : " db"), db, db_sum);
  }
}

static void test_all() {
  for (DType t : {DType::Float32, DType::BFloat16, DType::Float16})
    for (DType wide : {t, DType::Float32}) {
      for (bool bias : {false, true}) {
        test_linear(t, wide, 1, 1, 1, bias);
        test_linear(t, wide, 7, 33, 19, bias);
        test_linear(t, wide, 64, 128, 96, bias);
        test_linear(t, wide, 130, 65, 257, bias);
      }
      if (t == DType::Float32) break;  // the second is the first again
    }
  test_linear(DType::BFloat16, DType::Float32, 530, 20, 1030, true);  // several tiles where bfloat16 is converted
  test_linear(DType::BFloat16, DType::BFloat16, 12, 1100, 30, false);
  // No rows: dw and db are still defined.
  Buffer dw = random_buffer(DType::Float32, 6), db = random_buffer(DType::Float32, 2), none(DType::Float32, int64_t{0});
  execute(rz::LinearBackwardWeight{dw.view(), db.view(), none.view(), none.view(), 0, 3, 2, false});
  report("linear dw without rows", dw.values() == Values(6) && db.values() == Values(2));
}
static Test registered(test_all);
