#include <algorithm>

#include "check.h"
#include "core/runtime.h"
#include "ops/cross_entropy.h"

enum class Labels { All, Some, None };

static void test_fused(DType t, DType wide, int64_t rows, int64_t dim, int64_t vocab, Labels which, double denominator,
                       bool accumulate, bool narrow = false) {
  const std::string name = begin(label("linear_cross_entropy", t, {rows, dim, vocab, static_cast<int64_t>(which), narrow}));
  if (device_under_test()) runtime_under_test()->cuda().kernels().narrow_logits = narrow;
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
  rz::LinearCrossEntropy op{loss.view(), dx.view(), dw.view(), x.view(), w.view(), labels.view(),
                            rows,        dim,       vocab,     denominator, accumulate};
  execute(op);
  expect_close(name + " loss", loss.values(), loss_want, t == DType::Float32 ? 1e-6 : narrow ? tolerance(t) / 4 : 1e-4);
  expect_close(name + " dx", dx, dx_want);
  expect_close(name + " dw", dw, dw_want, 0, t);
  Buffer alone(DType::Float32, 1);
  op.loss = alone.view(), op.dx = op.dw = View{};
  execute(op);
  report(name + " loss alone", alone.same_bits(loss) || count == 0);
}

static void test_logits(int64_t rows, int64_t vocab) {
  const std::string name = begin(label("cross_entropy", DType::Float32, {rows, vocab}));
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
  execute(rz::CrossEntropy{loss.view(), d.view(), logits.view(), labels.view(), rows, vocab, 0});
  expect_close(name, loss.values(), {sum_want / count}, 1e-6);
  expect_close(name + " d", d, want);
  report("cross_entropy keeps the logits", logits.values() == v);
}

// Several ranks' parts of one vocabulary against the whole of it, in chunks of rows as the ranks do.
static void test_parts(DType gradient, int64_t rows, int64_t vocab, int64_t ranks, int64_t part, double denominator,
                       double spread) {
  const std::string name = begin(label("vocab_cross_entropy", gradient, {rows, vocab, ranks, part}));
  const int64_t chunk = 8;
  Values ids(rows), logits = Buffer(DType::Float32, random_values(rows * vocab, spread)).values(), want(rows * ranks * part);
  double count = 0, loss_want = 0;
  for (int64_t r = 0; r < rows; ++r) count += (ids[r] = r % 4 == 2 ? -100 : static_cast<double>(r * 37 % vocab)) >= 0;
  const double divisor = denominator != 0 ? denominator : count;
  for (int64_t r = 0; r < rows; ++r) {
    if (ids[r] < 0) continue;
    const double* row = logits.data() + r * vocab;
    double top = *std::max_element(row, row + vocab), sum = 0;
    for (int64_t c = 0; c < vocab; ++c) sum += std::exp(row[c] - top);
    for (int64_t c = 0; c < vocab; ++c)
      want[(r * ranks + c / part) * part + c % part] = (std::exp(row[c] - top) / sum - (c == ids[r])) / divisor;
    loss_want += (std::log(sum) + top - row[static_cast<int64_t>(ids[r])]) / divisor;
  }
  Buffer labels(DType::Int64, ids);
  std::vector<Buffer> losses(static_cast<size_t>(ranks), Buffer(DType::Float32, 1));
  Values got(want.size()), separate(want.size());
  bool kept = true, alone = true, stats_right = true;
  for (int64_t from = 0; from < rows; from += chunk) {
    const int64_t n = std::min(chunk, rows - from);
    Buffer some(DType::Int64, Values(ids.begin() + from, ids.begin() + from + n)), stats(DType::Float32, ranks * n * 3);
    std::vector<Buffer> parts;
    for (int64_t k = 0; k < ranks; ++k) {
      Values columns(n * part, 1e9);  // padding must not count
      const int64_t first = k * part, valid = std::clamp<int64_t>(vocab - first, 0, part);
      for (int64_t i = 0; i < n; ++i)
        for (int64_t c = 0; c < valid; ++c) columns[i * part + c] = logits[(from + i) * vocab + first + c];
      parts.emplace_back(DType::Float32, columns);
      View view = stats.view();
      view.data = view.as<float>() + k * n * 3, view.numel = n * 3;
      rz::VocabStats op{view, parts.back().view(), some.view(), n, part, first, valid};
      op.check();
      execute(op);
      for (int64_t i = 0; i < n; ++i) {
        const float* row = view.as<float>() + i * 3;
        const double* column = columns.data() + i * part;
        const auto id = static_cast<int64_t>(ids[from + i]);
        const bool counts = id >= 0 && valid > 0;
        double top = counts ? *std::max_element(column, column + valid) : -INFINITY, sum = 0;
        for (int64_t c = 0; counts && c < valid; ++c) sum += std::exp(column[c] - top);
        const double target = id >= first && id < first + valid ? column[id - first] : 0;
        // A sum of a thousand such terms in four lanes of float32 rounds by up to 1.7e-6 of itself in 3000 draws.
        stats_right &= row[0] == top && std::abs(row[1] - sum) <= 3e-6 * sum && row[2] == target;
      }
    }
    for (int64_t k = 0; k < ranks; ++k) {
      const int64_t first = k * part, valid = std::clamp<int64_t>(vocab - first, 0, part);
      Buffer &x = parts[k], before = x, &loss = losses[k], d(gradient, n * part), other(DType::Float32, Values{0.5});
      rz::VocabCrossEntropy op{loss.view(), d.view(), x.view(), stats.view(), labels.view(), ranks,      from,
                               n,           part,     first,    valid,        denominator,   from > 0};
      op.check();
      Buffer start = loss;
      execute(op);
      kept &= x.same_bits(before);
      op.loss = start.view(), op.d_logits = View{};
      execute(op);
      alone &= start.same_bits(loss);
      op.loss = other.view(), op.d_logits = x.view(), op.accumulate = true;
      execute(op);  // in place
      Values dv = d.values(), xv = x.values();
      for (int64_t i = 0; i < n; ++i)
        for (int64_t c = 0; c < part; ++c) {
          separate[((from + i) * ranks + k) * part + c] = dv[i * part + c];
          got[((from + i) * ranks + k) * part + c] = xv[i * part + c];
        }
    }
  }
  report(name + " stats", stats_right);
  report(name + " keeps the logits", kept);
  report(name + " loss alone", alone);
  expect_close(name + " loss", losses[0].values(), {loss_want}, 1e-6);
  for (Buffer& loss : losses) report(name + " loss on every rank", loss.same_bits(losses[0]));
  expect_close(name + " d", separate, want, tolerance(gradient));
  expect_close(name + " d in place", got, want, 1e-5);
  bool zeros = true;
  for (int64_t i = 0; i < rows * ranks * part; ++i)
    if (i % (ranks * part) >= vocab || ids[i / (ranks * part)] < 0) zeros &= got[i] == 0 && separate[i] == 0;
  report(name + " zeros of padding and rows without a label", zeros);
}

static void test_all() {
  for (DType t : {DType::Float32, DType::BFloat16, DType::Float16}) {
    test_parts(t, 21, 1003, 1, 1003, 0, 4);
    test_parts(t, 21, 1003, 3, 344, 0, 4);    // the last part has padding
    test_parts(t, 21, 37, 4, 16, 50, 4);      // two of four parts are not full, one is empty
    test_parts(t, 9, 9000, 2, 4500, 0, 300);  // beyond the range of exp without the maximum taken out
  }
  for (DType t : {DType::Float32, DType::BFloat16, DType::Float16})
    for (DType wide : {t, DType::Float32}) {
      test_fused(t, wide, 37, 24, 101, Labels::All, 0, false);
      test_fused(t, wide, 37, 24, 101, Labels::Some, 50, true);
      if (!device_under_test()) test_fused(t, wide, 200, 16, 33000, Labels::All, 0, false);  // several chunks
      test_fused(t, wide, 9, 8, 7, Labels::None, 0, false);        // NaN loss, zero gradients
      test_fused(t, wide, 9, 8, 7, Labels::None, 4, true);
    }
  if (device_under_test()) {
    for (DType t : {DType::Float32, DType::BFloat16, DType::Float16})  // 16-bit logits, which gradients overwrite
      for (DType wide : {t, DType::Float32})
        for (int64_t vocab : {101, 104, 5000}) test_fused(t, wide, 37, 24, vocab, Labels::Some, 0, vocab == 104, true);
    test_fused(DType::BFloat16, DType::Float32, 4200, 8, 9, Labels::Some, 0, false, true);
    test_fused(DType::BFloat16, DType::Float32, 4200, 8, 9, Labels::All, 0, false);  // chunks of a device are longer
    test_fused(DType::Float32, DType::Float32, 4200, 8, 9, Labels::Some, 0, true);
  } else {
    test_fused(DType::Float32, DType::Float32, 300, 16, 33000, Labels::Some, 0, true);
  }
  test_logits(21, 1003);
  // Beyond the range of exp without the maximum taken out.
  Buffer logits(DType::Float32, Values{1000, 999, -1000}), loss(DType::Float32, 1), label_one(DType::Int64, Values{1});
  execute(rz::CrossEntropy{loss.view(), View{}, logits.view(), label_one.view(), 1, 3, 0});
  Buffer none(DType::Int64, Values{-100}), stats(DType::Float32, 3), d(DType::Float32, 3), no_loss(DType::Float32, 1);
  execute(rz::VocabStats{stats.view(), logits.view(), none.view(), 1, 3, 0, 3});
  rz::VocabCrossEntropy op{no_loss.view(), d.view(), logits.view(), stats.view(), none.view(), 1, 0, 1, 3, 0, 3, 0, false};
  execute(op);
  report("vocab_cross_entropy without a label", std::isnan(no_loss.values()[0]) && d.values() == Values(3));
  op.denominator = 2;
  execute(op);
  report("vocab_cross_entropy without a label, denominator given", no_loss.values() == Values(1));
  expect_close("cross_entropy of large logits", loss.values(), {1.0 + std::log1p(std::exp(-1.0))}, 1e-6);
}
static Test registered(test_all);
