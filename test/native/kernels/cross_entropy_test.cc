#include "check.h"
#include "ops/cross_entropy.h"

enum class Labels { All, Some, None };

static void test_fused(DType t, DType wide, int64_t rows, int64_t dim, int64_t vocab, Labels which, double denominator,
                       bool accumulate) {
  Buffer x = random_buffer(t, rows * dim), w = random_buffer(t, vocab * dim, 0.2);
  Values ids(rows, -100), xv = x.values(), wv = w.values();
  int64_t count = 0;
  for (int64_t r = 0; r < rows; ++r)
    if (which == Labels::All || (which == Labels::Some && r % 3 == 1)) ids[r] = static_cast<double>(r * 13 % vocab), ++count;
  Buffer labels(DType::Int64, ids), loss(DType::Float32, 1), dx(t, rows * dim), dw = random_buffer(wide, vocab * dim);
  Values dx_want(rows * dim), dw_want = accumulate ? dw.values() : Values(vocab * dim), loss_want(1);
  double divisor = denominator != 0 ? denominator : static_cast<double>(count);
  for (int64_t r = 0; r < rows; ++r) {
    if (ids[r] < 0) continue;
    Values p(vocab);
    double top = -INFINITY, sum = 0;
    for (int64_t c = 0; c < vocab; ++c) {
      for (int64_t d = 0; d < dim; ++d) p[c] += xv[r * dim + d] * wv[c * dim + d];
      top = std::max(top, p[c]);
    }
    for (double v : p) sum += std::exp(v - top);
    auto target = static_cast<int64_t>(ids[r]);
    loss_want[0] += std::log(sum) + top - p[target];
    for (int64_t c = 0; c < vocab; ++c) {
      double g = (std::exp(p[c] - top) / sum - (c == target)) / divisor;
      for (int64_t d = 0; d < dim; ++d) {
        dx_want[r * dim + d] += g * wv[c * dim + d];
        dw_want[c * dim + d] += g * xv[r * dim + d];
      }
    }
  }
  loss_want[0] /= divisor;
  std::string name = label("linear_cross_entropy", t, {rows, dim, vocab, static_cast<int64_t>(which)});
  rz::LinearCrossEntropy op{loss.view(), dx.view(), dw.view(), x.view(), w.view(), labels.view(),
                            rows,        dim,       vocab,     denominator, accumulate};
  rz::cpu::run(op);
  expect_close(name + " loss", loss.values(), loss_want, t == DType::Float32 ? 1e-6 : 1e-4);
  expect_close(name + " dx", dx, dx_want);
  expect_close(name + " dw", dw, dw_want, 0, t);
  Buffer alone(DType::Float32, 1);
  op.loss = alone.view(), op.dx = op.dw = View{};
  rz::cpu::run(op);
  report(name + " loss alone", alone.same_bits(loss) || count == 0);
}

static void test_logits(int64_t rows, int64_t vocab) {
  Buffer logits = random_buffer(DType::Float32, rows * vocab, 4.0), d(DType::Float32, rows * vocab), loss(DType::Float32, 1);
  Values ids(rows), v = logits.values(), want(rows * vocab);
  double sum_want = 0, count = 0;
  for (int64_t r = 0; r < rows; ++r) count += (ids[r] = r % 4 == 0 ? -100 : static_cast<double>(r % vocab)) >= 0;
  for (int64_t r = 0; r < rows; ++r) {
    if (ids[r] < 0) continue;
    double sum = 0;
    for (int64_t c = 0; c < vocab; ++c) sum += std::exp(v[r * vocab + c]);
    for (int64_t c = 0; c < vocab; ++c) want[r * vocab + c] = (std::exp(v[r * vocab + c]) / sum - (c == ids[r])) / count;
    sum_want += std::log(sum) - v[r * vocab + static_cast<int64_t>(ids[r])];
  }
  Buffer labels(DType::Int64, ids);
  rz::cpu::run(rz::CrossEntropy{loss.view(), d.view(), logits.view(), labels.view(), rows, vocab, 0});
  expect_close(label("cross_entropy", DType::Float32, {rows, vocab}), loss.values(), {sum_want / count}, 1e-6);
  expect_close(label("cross_entropy d", DType::Float32, {rows, vocab}), d, want);
  report("cross_entropy keeps the logits", logits.values() == v);
}

static void test_all() {
  for (DType t : {DType::Float32, DType::BFloat16, DType::Float16})
    for (DType wide : {t, DType::Float32}) {
      test_fused(t, wide, 37, 24, 101, Labels::All, 0, false);
      test_fused(t, wide, 37, 24, 101, Labels::Some, 50, true);
      test_fused(t, wide, 200, 16, 33000, Labels::All, 0, false);  // several chunks
      test_fused(t, wide, 9, 8, 7, Labels::None, 0, false);        // NaN loss, zero gradients
      test_fused(t, wide, 9, 8, 7, Labels::None, 4, true);
    }
  test_fused(DType::Float32, DType::Float32, 300, 16, 33000, Labels::Some, 0, true);
  test_logits(21, 1003);
  // Beyond the range of exp without the maximum taken out.
  Buffer logits(DType::Float32, Values{1000, 999, -1000}), loss(DType::Float32, 1), label_one(DType::Int64, Values{1});
  rz::cpu::run(rz::CrossEntropy{loss.view(), View{}, logits.view(), label_one.view(), 1, 3, 0});
  expect_close("cross_entropy of large logits", loss.values(), {1.0 + std::log1p(std::exp(-1.0))}, 1e-6);
}
static Test registered(test_all);
