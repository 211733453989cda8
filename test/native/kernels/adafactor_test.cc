#include <algorithm>

#include "check.h"
#include "ops/adafactor.h"

// A block of a matrix in two slices, so that a row is cut: five updates against torch.optim.Adafactor's formulas.
struct Shape {
  int64_t rows, columns;        // of the matrix
  int64_t row, column, width;   // of the block, which reaches to the last row
  int64_t first, cut;           // elements of the block: [first, cut) and [cut, end)
};

static void test_matrix(DType pt, DType gt, Shape s) {
  const std::string name = begin(label("adafactor", pt, {s.rows, s.columns, s.row, s.column, s.width, s.first, s.cut}) + " " + rz::name_of(gt));
  const int64_t end = (s.rows - s.row) * s.width, sizes[] = {s.cut - s.first, end - s.cut}, firsts[] = {s.first, s.cut};
  const double lr = 1e-2, wd = 0.1, eps1 = 1.1920929e-07, eps2 = 1e-3, clip = 1.25;
  Buffer row_var(DType::Float32, Values(s.rows)), column_var(DType::Float32, Values(s.columns)), mean(DType::Float32, Values(1));
  Buffer factor(DType::Float32, Values{0.25});
  Buffer params[] = {random_buffer(pt, sizes[0]), random_buffer(pt, sizes[1])};
  Buffer copies[] = {Buffer(DType::BFloat16, sizes[0]), Buffer(DType::BFloat16, sizes[1])};
  const bool has_copy = pt == DType::Float32;
  Values want[] = {params[0].values(), params[1].values()}, row_want(s.rows), column_want(s.columns);
  for (int64_t step = 1; step <= 5; ++step) {
    const double weight = std::pow(step, -0.8), rho = std::min(lr, 1 / std::sqrt(step));
    Buffer grads[] = {random_buffer(gt, sizes[0]), random_buffer(gt, sizes[1])};
    Values row_sums_want(s.rows), column_sums_want(s.columns);
    Buffer row_sums(DType::Float32, Values(s.rows)), column_sums(DType::Float32, Values(s.columns));
    Buffer squares(DType::Float32, Values(1)), norm(DType::Float32, Values(1));
    double squares_want = 0, norm_want = 0;
    auto place = [&](int k, int64_t i) {
      const int64_t e = firsts[k] + i;
      return std::pair{s.row + e / s.width, s.column + e % s.width};
    };
    for (int k = 0; k < 2; ++k) {
      const Values g = grads[k].values();
      for (int64_t i = 0; i < sizes[k]; ++i) {
        const auto [r, c] = place(k, i);
        row_sums_want[r] += g[i] * g[i] / 16, column_sums_want[c] += g[i] * g[i] / 16, squares_want += want[k][i] * want[k][i];
      }
      execute(rz::AdafactorSums{row_sums.view(), column_sums.view(), grads[k].view(), factor.view(), firsts[k], s.width, s.row, s.column});
    }
    squares = Buffer(DType::Float32, Values{squares_want});
    expect_close(name + " row sums", row_sums.values(), row_sums_want, 1e-6);
    expect_close(name + " column sums", column_sums.values(), column_sums_want, 1e-6);
    execute(rz::AdafactorFactors{row_var.view(), column_var.view(), mean.view(), row_sums.view(), column_sums.view(), weight});
    double mean_want = 0;
    for (int64_t r = 0; r < s.rows; ++r) {
      row_want[r] += weight * (row_sums_want[r] / s.columns - row_want[r]);
      mean_want += row_want[r] / s.rows;
    }
    for (int64_t c = 0; c < s.columns; ++c) column_want[c] += weight * (column_sums_want[c] / s.rows - column_want[c]);
    auto update = [&](int k, int64_t i, double g) {
      const auto [r, c] = place(k, i);
      return g * 0.25 / std::sqrt(std::max(row_want[r] * column_want[c] / std::max(mean_want, eps1), eps1 * eps1));
    };
    for (int k = 0; k < 2; ++k) {
      const Values g = grads[k].values();
      for (int64_t i = 0; i < sizes[k]; ++i) norm_want += std::pow(update(k, i, g[i]), 2);
      execute(rz::AdafactorNorm{norm.view(), grads[k].view(), factor.view(), View{}, row_var.view(), column_var.view(), mean.view(), firsts[k],
                                s.width, s.row, s.column, eps1, weight});
    }
    expect_close(name + " norm", norm.values(), Values{norm_want}, 1e-5);
    const int64_t numel = s.rows * s.columns;
    const double alpha = std::max(eps2, std::sqrt(squares_want / numel)) * rho;
    const double denominator = std::max(1.0, std::sqrt(norm_want / numel) / clip);
    for (int k = 0; k < 2; ++k) {
      const Values g = grads[k].values();
      for (int64_t i = 0; i < sizes[k]; ++i) want[k][i] = want[k][i] * (1 - lr * wd) - alpha / denominator * update(k, i, g[i]);
      execute(rz::AdafactorStep{params[k].view(), grads[k].view(), factor.view(), has_copy ? copies[k].view() : View{}, View{}, row_var.view(),
                                column_var.view(), mean.view(), squares.view(), norm.view(), firsts[k], s.width, s.row, s.column, numel, lr, rho,
                                eps1, eps2, clip, wd});
    }
  }
  for (int k = 0; k < 2; ++k) {
    expect_close(name, params[k].values(), want[k], pt == DType::Float32 ? 1e-6 : 1e-2);
    if (has_copy) report(name + ": the copy is the rounded parameter", copies[k].same_bits(Buffer(DType::BFloat16, params[k].values())));
  }
}

static void test_vector(DType pt, DType gt) {
  const std::string name = begin(label("adafactor of a vector", pt, {}) + " " + rz::name_of(gt));
  const int64_t n = 1037;
  const double lr = 1e-2, eps1 = 1.1920929e-07, eps2 = 1e-3, clip = 1;
  Buffer p = random_buffer(pt, n), variance(DType::Float32, Values(n));
  Values want = p.values(), variance_want(n);
  for (int64_t step = 1; step <= 3; ++step) {
    const double weight = std::pow(step, -0.8), rho = std::min(lr, 1 / std::sqrt(step));
    Buffer g = random_buffer(gt, n), norm(DType::Float32, Values(1));
    const Values gv = g.values();
    double squares = 0, norm_want = 0;
    Values update(n);
    for (int64_t i = 0; i < n; ++i) {
      squares += want[i] * want[i];
      variance_want[i] += weight * (gv[i] * gv[i] - variance_want[i]);
      update[i] = gv[i] / std::sqrt(std::max(variance_want[i], eps1 * eps1));
      norm_want += update[i] * update[i];
    }
    Buffer param_squares(DType::Float32, Values{squares});
    execute(rz::AdafactorNorm{norm.view(), g.view(), View{}, variance.view(), View{}, View{}, View{}, 0, n, 0, 0, eps1, weight});
    expect_close(name + " norm", norm.values(), Values{norm_want}, 1e-5);
    execute(rz::AdafactorStep{p.view(), g.view(), View{}, View{}, variance.view(), View{}, View{}, View{}, param_squares.view(), norm.view(), 0, n,
                              0, 0, n, lr, rho, eps1, eps2, clip, 0.0});
    const double factor = std::max(eps2, std::sqrt(squares / n)) * rho / std::max(1.0, std::sqrt(norm_want / n) / clip);
    for (int64_t i = 0; i < n; ++i) want[i] -= factor * update[i];
  }
  expect_close(name, p.values(), want, pt == DType::Float32 ? 1e-6 : 1e-2);
  expect_close(name + " variance", variance.values(), variance_want, 1e-6);
}

static void test_all() {
  for (Shape s : {Shape{37, 29, 0, 0, 29, 0, 41}, Shape{65, 300, 3, 20, 270, 7, 5003}, Shape{9, 700, 8, 100, 520, 3, 200}, Shape{300, 5, 0, 0, 5, 2, 901}}) {
    test_matrix(DType::Float32, DType::Float32, s);
    test_matrix(DType::Float32, DType::BFloat16, s);
    test_matrix(DType::BFloat16, DType::BFloat16, s);
  }
  test_vector(DType::Float32, DType::Float32);
  test_vector(DType::BFloat16, DType::BFloat16);
  begin("adafactor_sums");
  Buffer grad = random_buffer(DType::Float32, 200 * 331), rows(DType::Float32, 200), columns(DType::Float32, 331);
  auto sums = [&] {
    rows = Buffer(DType::Float32, Values(200)), columns = Buffer(DType::Float32, Values(331));
    execute(rz::AdafactorSums{rows.view(), columns.view(), grad.view(), View{}, 0, 331, 0, 0});
  };
  expect_thread_independent("adafactor_sums rows", rows, sums);
  expect_thread_independent("adafactor_sums columns", columns, sums);
}
static Test registered(test_all);
