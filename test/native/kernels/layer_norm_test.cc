#include "check.h"
#include "ops/layer_norm.h"

// `offset`: how far the rows are from zero, in standard deviations; the variance must not lose digits to it.
static void test_layer_norm(DType t, DType wide, int64_t rows, int64_t dim, double offset) {
  const std::string name = begin(label("layer_norm", t, {rows, dim, static_cast<int64_t>(offset)}));
  Values values = random_values(rows * dim);
  for (int64_t i = 0; i < rows * dim; ++i) values[i] += offset * (1 + static_cast<double>(i / dim % 3));
  Buffer x(t, values), w = random_buffer(t, dim), b = random_buffer(t, dim), dy = random_buffer(t, rows * dim);
  Buffer y(t, rows * dim), mean(DType::Float32, rows), rstd(DType::Float32, rows);
  Values xv = x.values(), wv = w.values(), bv = b.values(), dyv = dy.values();
  Values y_want(rows * dim), dx_want(rows * dim), dw_want(dim), db_want(dim), mean_want(rows), rstd_want(rows);
  double dx_terms = 0;  // in short rows dx is what is left of them
  for (int64_t r = 0; r < rows; ++r) {
    const double *xr = &xv[r * dim], *dr = &dyv[r * dim];
    double sum = 0, squares = 0, shift = 0, tilt = 0;
    for (int64_t i = 0; i < dim; ++i) sum += xr[i];
    double m = mean_want[r] = sum / dim;
    for (int64_t i = 0; i < dim; ++i) squares += (xr[i] - m) * (xr[i] - m);
    double scale = rstd_want[r] = 1 / std::sqrt(squares / dim + 1e-5);
    for (int64_t i = 0; i < dim; ++i) {
      double hat = (xr[i] - m) * scale;
      y_want[r * dim + i] = hat * wv[i] + bv[i];
      shift += dr[i] * wv[i] / dim;
      tilt += dr[i] * wv[i] * hat / dim;
      dw_want[i] += dr[i] * hat;
      db_want[i] += dr[i];
    }
    for (int64_t i = 0; i < dim; ++i) {
      dx_want[r * dim + i] = scale * (dr[i] * wv[i] - shift - (xr[i] - m) * scale * tilt);
      dx_terms += std::pow(scale * dr[i] * wv[i], 2);
    }
  }
  rz::LayerNormForward forward{y.view(), mean.view(), rstd.view(), x.view(), w.view(), b.view(), rows, dim, 1e-5f};
  execute(forward);
  expect_close(name, y, y_want);
  expect_close(name + " mean", mean, mean_want, std::sqrt(rows));
  expect_close(name + " rstd", rstd, rstd_want);
  expect_thread_independent(name, y, [&] { execute(forward); });

  // Every combination of frozen weights and of what is added to what was there.
  for (bool with_w : {false, true})
    for (bool with_b : {false, true})
      for (bool add_w : {false, true}) {
        const bool add_b = !add_w;
        Buffer dx(t, rows * dim), dw = random_buffer(wide, dim), db = random_buffer(wide, dim);
        Values dw_sum = dw_want, db_sum = db_want, old_w = dw.values(), old_b = db.values();
        for (int64_t i = 0; i < dim; ++i) dw_sum[i] += add_w ? old_w[i] : 0, db_sum[i] += add_b ? old_b[i] : 0;
        rz::LayerNormBackward backward{dx.view(),   with_w ? dw.view() : View{}, with_b ? db.view() : View{},
                                       dy.view(),   x.view(),                    w.view(),
                                       mean.view(), rstd.view(),                 rows,
                                       dim,         add_w,                       add_b};
        execute(backward);
        expect_close(name + " dx", dx, dx_want, std::sqrt(dx_terms));
        expect_close(name + " dw", dw, with_w ? dw_sum : old_w, 0.1 * std::sqrt(rows * dim), t);
        expect_close(name + " db", db, with_b ? db_sum : old_b, 0.1 * std::sqrt(rows * dim), t);
        if (with_w && !add_w) expect_thread_independent(name + " dw", dw, [&] { execute(backward); });
        if (with_b && !add_b) expect_thread_independent(name + " db", db, [&] { execute(backward); });
      }
}

static void test_all() {
  for (DType t : {DType::Float32, DType::BFloat16, DType::Float16})
    for (DType wide : {t, DType::Float32}) {
      test_layer_norm(t, wide, 1, 2, 0);
      test_layer_norm(t, wide, 67, 80, 1);
      test_layer_norm(t, wide, 33, 513, 0);
      test_layer_norm(t, wide, 5, 37, 2);
    }
  test_layer_norm(DType::Float32, DType::Float32, 300, 64, 10);
}
static Test registered(test_all);
