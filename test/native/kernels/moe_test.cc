#include <algorithm>
#include <array>
#include <cstdlib>
#include <numeric>

#include "check.h"
#include "ops/moe.h"

namespace {

// Rows that enter the balance: not all, so that a test sees it.
int64_t counted(int64_t rows) { return rows - rows / 8; }

struct Routing {
  Routing(int64_t rows, int64_t experts, int64_t k)
      : weights(DType::Float32, rows * k), chosen(DType::Int32, rows * k), order(DType::Int32, rows * k),
        offsets(DType::Int32, experts + 1), probs(DType::Float32, rows * experts), balance(DType::Float32, 2 * experts) {}
  void run(Buffer& logits, int64_t rows, int64_t experts, int64_t k, bool measured = true) {
    execute(rz::RoutingForward{weights.view(), chosen.view(), order.view(), offsets.view(), probs.view(),
                                    measured ? balance.view() : View{}, logits.view(), rows, experts, k, counted(rows)});
  }
  Buffer weights, chosen, order, offsets, probs, balance;
};

void test_routing(DType t, int64_t rows, int64_t experts, int64_t k) {
  const std::string name = begin(label("routing", t, {rows, experts, k}));
  Buffer logits = random_buffer(t, rows * experts, 2.0);
  Values l = logits.values(), probs(rows * experts), weights(rows * k), chosen(rows * k), order, offsets(experts + 1);
  Values balance(2 * experts);
  for (int64_t r = 0; r < rows; ++r) {
    double sum = 0, kept = 0;
    for (int64_t e = 0; e < experts; ++e) sum += std::exp(l[r * experts + e]);
    for (int64_t e = 0; e < experts; ++e) probs[r * experts + e] = std::exp(l[r * experts + e]) / sum;
    for (int64_t e = 0; r < counted(rows) && e < experts; ++e) balance[experts + e] += probs[r * experts + e];
    std::vector<int64_t> best(experts);
    std::iota(best.begin(), best.end(), 0);
    std::sort(best.begin(), best.end(), [&](auto a, auto b) { return probs[r * experts + a] > probs[r * experts + b]; });
    for (int64_t s = 0; s < k; ++s) kept += probs[r * experts + best[s]];
    for (int64_t s = 0; s < k; ++s) {
      chosen[r * k + s] = static_cast<double>(best[s]);
      weights[r * k + s] = probs[r * experts + best[s]] / kept;
      balance[best[s]] += r < counted(rows);
    }
  }
  for (int64_t e = 0; e < experts; ++e) {
    offsets[e] = static_cast<double>(order.size());
    for (int64_t p = 0; p < rows * k; ++p)
      if (chosen[p] == static_cast<double>(e)) order.push_back(static_cast<double>(p));
  }
  offsets[experts] = static_cast<double>(rows * k);
  Routing got(rows, experts, k);
  got.run(logits, rows, experts, k);
  // Rounded logits tie: then which of the tied is chosen is another test's matter.
  bool tied = t != DType::Float32 && got.chosen.values() != chosen;
  if (!tied) {
    report(name + " chosen", got.chosen.values() == chosen);
    report(name + " order", got.order.values() == order && got.offsets.values() == offsets);
    expect_close(name + " balance", got.balance, balance);
  }
  expect_close(name + " weights", got.weights, weights);
  expect_close(name + " probs", got.probs, probs);
  expect_thread_independent(name, got.weights, [&] { got.run(logits, rows, experts, k); });

  // The gradient by whole Jacobians: of the weights by the probabilities, of those by the logits.
  chosen = got.chosen.values();
  for (bool balanced : {false, true}) {
    Buffer d_weights = random_buffer(DType::Float32, rows * k), d_probs = random_buffer(DType::Float32, experts);
    Buffer d_logits = random_buffer(t, rows * experts);
    Values dw = d_weights.values(), c = d_probs.values(), want(rows * experts);
    double terms = 0;
    for (int64_t r = 0; r < rows; ++r) {
      const double* p = probs.data() + r * experts;
      Values dp(experts);
      double kept = 0;
      for (int64_t s = 0; s < k; ++s) kept += p[static_cast<int64_t>(chosen[r * k + s])];
      for (int64_t e = 0; balanced && r < counted(rows) && e < experts; ++e) dp[e] = 0.25 * c[e];
      for (int64_t a = 0; a < k; ++a)
        for (int64_t b = 0; b < k; ++b) {
          auto i = static_cast<int64_t>(chosen[r * k + a]), j = static_cast<int64_t>(chosen[r * k + b]);
          dp[j] += dw[r * k + a] * ((a == b ? kept : 0.0) - p[i]) / (kept * kept);
        }
      for (int64_t e = 0; e < experts; ++e)
        for (int64_t f = 0; f < experts; ++f) want[r * experts + e] += dp[f] * p[f] * ((e == f) - p[e]);
      for (int64_t e = 0; e < experts; ++e) terms += dp[e] * p[e] * dp[e] * p[e];
    }
    execute(rz::RoutingBackward{d_logits.view(), d_weights.view(), got.weights.view(), got.chosen.view(),
                                     got.probs.view(), balanced ? d_probs.view() : View{}, rows, experts, k, counted(rows), 0.25f});
    expect_close(name + (balanced ? " d_logits, balanced" : " d_logits"), d_logits, want, 0.1 * std::sqrt(terms));
  }
}

// What torch.topk of PyTorch 2.13 chooses among equal probabilities: 200 rows of a few values, as a hash.
void test_ties() {
  struct Case {
    int64_t experts, k, values;
    uint64_t hash;
  };
  for (auto [experts, k, values, hash] : {Case{4, 1, 2, 0xdb5a623ac6bc1e19ull}, Case{4, 2, 2, 0xa2f7eef13ec352fdull},
                                          Case{8, 2, 2, 0x804e67e69e75a99full}, Case{8, 2, 3, 0xa02229826471716full},
                                          Case{8, 3, 2, 0x286b6a67b83523e8ull}, Case{16, 4, 3, 0x26b99edb8bc3bf8cull},
                                          Case{40, 6, 2, 0x862172a3d08e7a96ull}, Case{64, 1, 4, 0xcdef5d3ddd9cfcb5ull},
                                          Case{128, 2, 3, 0xe61efa334cbf7908ull}, Case{128, 8, 2, 0x0e81db4c88a31249ull}}) {
    const int64_t rows = 200;
    Values v;
    for (uint32_t i = 0, state = 12345; i < rows * experts; ++i) {
      state = state * 1664525u + 1013904223u;
      v.push_back((state >> 16) % values);
    }
    Buffer logits(DType::BFloat16, v);
    Routing got(rows, experts, k);
    got.run(logits, rows, experts, k);
    uint64_t h = 0xcbf29ce484222325ull;
    for (double e : got.chosen.values()) h = (h ^ static_cast<uint64_t>(e)) * 0x100000001b3ull;
    report(label("routing ties", DType::BFloat16, {experts, k, values}), h == hash);
  }
  // A row of NaN (a model that diverged) still routes within bounds.
  Buffer logits(DType::Float32, Values(8, std::nan("")));
  Routing got(1, 8, 2);
  got.run(logits, 1, 8, 2);
  report("routing of NaN", got.chosen.values() == Values{6, 5} && std::isnan(got.weights.values()[0]));
}

struct Expert {
  Buffer w1, w2, w3;
};

template <class V = View>
std::vector<V> views(std::vector<Expert>& experts, Buffer Expert::* matrix) {
  std::vector<V> out;
  for (Expert& e : experts) out.push_back((e.*matrix).view());
  return out;
}

// `wide`: the dtype of the weight gradients. Expert 1 gets no row.
void test_experts(DType t, DType wide, int64_t rows, int64_t dim, int64_t inner, int64_t count, int64_t k) {
  const std::string name = begin(label("experts", t, {rows, dim, inner, count, k}) + " to " + rz::name_of(wide));
  Values l = random_values(rows * count, 1.5);
  for (int64_t r = 0; r < rows; ++r) l[r * count + 1] = -60;
  Buffer logits(DType::Float32, l), x = random_buffer(t, rows * dim), dy = random_buffer(t, rows * dim);
  Routing routing(rows, count, k);
  routing.run(logits, rows, count, k, false);
  std::vector<Expert> experts;
  for (int64_t e = 0; e < count; ++e)
    experts.push_back({random_buffer(t, inner * dim, 0.3), random_buffer(t, dim * inner, 0.3), random_buffer(t, inner * dim, 0.3)});

  Values xv = x.values(), dyv = dy.values(), weights = routing.weights.values(), chosen = routing.chosen.values();
  Values y_want(rows * dim), dx_want(rows * dim), d_weights_want(rows * k);
  double d_weights_terms = 0;  // of a narrow expert d_weights is what is left of them
  std::vector<std::array<Values, 3>> dw_want(count, {Values(inner * dim), Values(dim * inner), Values(inner * dim)});
  for (int64_t pair = 0; pair < rows * k; ++pair) {
    auto e = static_cast<size_t>(chosen[pair]);
    const double *in = xv.data() + pair / k * dim, *d = dyv.data() + pair / k * dim;
    Values w1 = experts[e].w1.values(), w2 = experts[e].w2.values(), w3 = experts[e].w3.values(), d_act(inner);
    for (int64_t i = 0; i < inner; ++i) {
      double gate = 0, up = 0, d_act = 0;
      for (int64_t h = 0; h < dim; ++h) gate += w1[i * dim + h] * in[h], up += w3[i * dim + h] * in[h];
      double sigmoid = 1 / (1 + std::exp(-gate)), silu = gate * sigmoid, act = silu * up;
      for (int64_t h = 0; h < dim; ++h) {
        d_act += w2[h * inner + i] * d[h];
        d_weights_terms += std::pow(w2[h * inner + i] * d[h] * act, 2);
      }
      double d_up = weights[pair] * d_act * silu;
      double d_gate = weights[pair] * d_act * up * (sigmoid + gate * sigmoid * (1 - sigmoid));
      d_weights_want[pair] += d_act * act;
      for (int64_t h = 0; h < dim; ++h) {
        y_want[pair / k * dim + h] += weights[pair] * w2[h * inner + i] * act;
        dx_want[pair / k * dim + h] += d_gate * w1[i * dim + h] + d_up * w3[i * dim + h];
        dw_want[e][0][i * dim + h] += d_gate * in[h];
        dw_want[e][1][h * inner + i] += weights[pair] * act * d[h];
        dw_want[e][2][i * dim + h] += d_up * in[h];
      }
    }
  }

  Buffer y(t, rows * dim), gate(t, rows * k * inner), up(t, rows * k * inner);
  auto forward = [&](View kept_gate, View kept_up) {
    execute(rz::ExpertsForward{y.view(), kept_gate, kept_up, x.view(), routing.weights.view(), routing.order.view(),
                                    routing.offsets.view(), views(experts, &Expert::w1), views(experts, &Expert::w2),
                                    views(experts, &Expert::w3), rows, dim, inner, k});
  };
  forward(gate.view(), up.view());
  expect_close(name + " forward", y, y_want);
  Buffer kept = y;
  forward(View{}, View{});
  report(name + " forward that keeps nothing: same bits", y.same_bits(kept));
  const bool exact = !std::getenv("DNNL_MAX_CPU_ISA");  // oneDNN's own AVX2 products depend on the number of threads
  if (exact) expect_thread_independent(name + " forward", y, [&] { forward(View{}, View{}); });

  Buffer d_weights(DType::Float32, rows * k), dx(t, rows * dim);
  auto backward = [&](View to, std::vector<Expert>& dw, bool trains, const std::vector<bool>& accumulate) {
    Buffer used_gate = gate, used_up = up;
    rz::ExpertGradients none(count);
    execute(rz::ExpertsBackward{to, d_weights.view(), trains ? views<rz::OptionalView>(dw, &Expert::w1) : none,
                                     trains ? views<rz::OptionalView>(dw, &Expert::w2) : none, trains ? views<rz::OptionalView>(dw, &Expert::w3) : none,
                                     dy.view(), x.view(), used_gate.view(), used_up.view(), routing.weights.view(),
                                     routing.order.view(), routing.offsets.view(), views(experts, &Expert::w1),
                                     views(experts, &Expert::w2), views(experts, &Expert::w3), accumulate, rows, dim,
                                     inner, k});
  };
  // Every matrix has a flag of its own.
  std::vector<Expert> dw;
  std::vector<bool> accumulate(3 * count);
  for (int64_t e = 0; e < count; ++e) {
    dw.push_back({random_buffer(wide, inner * dim), random_buffer(wide, dim * inner), random_buffer(wide, inner * dim)});
    for (int64_t i = 0; i < 3; ++i) accumulate[i * count + e] = (e + i) % 2 == 1;
  }
  std::vector<Expert> before = dw;
  backward(dx.view(), dw, true, accumulate);
  expect_close(name + " dx", dx, dx_want);
  expect_close(name + " d_weights", d_weights, d_weights_want, std::sqrt(d_weights_terms), t);
  Buffer Expert::* matrices[] = {&Expert::w1, &Expert::w2, &Expert::w3};
  for (int64_t e = 0; e < count; ++e)
    for (int64_t i = 0; i < 3; ++i) {
      Buffer& got = dw[e].*matrices[i];
      Values old = (before[e].*matrices[i]).values(), want = dw_want[e][i];
      for (size_t j = 0; accumulate[i * count + e] && j < want.size(); ++j) want[j] += old[j];
      std::string what = name + " dw" + std::to_string(i + 1) + " of expert " + std::to_string(e);
      if (e == 1) report(what + ", which has no row", got.values() == want);
      else expect_close(what, got, want, 0, t);
    }
  if (!exact) return;
  expect_thread_independent(name + " dx", dx, [&] { backward(dx.view(), before, false, accumulate); });
  expect_thread_independent(name + " dw", before[0].w2, [&] {
    backward(View{}, before, true, std::vector<bool>(3 * count, false));
  });
}

void test_balancing_loss(int64_t layers, int64_t experts, int64_t rows) {
  begin("balancing loss " + std::to_string(layers));
  Values balance = random_values(layers * 2 * experts), want(experts);
  for (double& v : balance) v = std::round(std::abs(v) * 100);
  double n = static_cast<double>(layers * rows), sum = 0;
  for (int64_t e = 0; e < experts; ++e) {
    double pairs = 0, probs = 0;
    for (int64_t l = 0; l < layers; ++l) pairs += balance[2 * l * experts + e], probs += balance[(2 * l + 1) * experts + e];
    sum += pairs / n * probs / n;
    want[e] = 3 * 0.02 * experts * pairs / n / n;
  }
  Buffer b(DType::Float32, balance), loss(DType::Float32, Values{2.5}), total(DType::Float32, 1), d_total(DType::Float32, Values{3});
  Buffer d_probs(DType::Float32, experts);
  execute(rz::BalancingLossForward{total.view(), loss.view(), b.view(), layers, experts, rows, 0.02});
  expect_close("balancing loss", total, {2.5 + 0.02 * experts * sum});
  execute(rz::BalancingLossBackward{d_probs.view(), d_total.view(), b.view(), layers, experts, rows, 0.02});
  expect_close("balancing loss, gradient", d_probs, want);
}

void test_all() {
  for (DType t : {DType::Float32, DType::BFloat16, DType::Float16}) {
    test_routing(t, 1, 1, 1);
    test_routing(t, 300, 8, 2);
    test_routing(t, 40, 70, 5);
    test_routing(t, 17, 4, 4);
    for (DType wide : {t, DType::Float32}) {
      test_experts(t, wide, 1, 5, 3, 3, 1);
      test_experts(t, wide, 61, 24, 40, 5, 2);
      test_experts(t, wide, 120, 301, 65, 3, 2);  // several threads
      if (wide == t && t == DType::Float32) break;
    }
  }
  test_ties();
  test_balancing_loss(1, 4, 24);
  test_balancing_loss(32, 8, 300);
  // More than 32 rows of which share memory on a device.
  test_routing(DType::Float32, 20, 400, 8);

  // No rows: groups are empty, and weight gradients are zero.
  Buffer none(DType::Float32, int64_t{0}), index(DType::Int32, int64_t{0}), offsets(DType::Int32, 3), w = random_buffer(DType::Float32, 6);
  Buffer dw = random_buffer(DType::Float32, 6);
  execute(rz::RoutingForward{none.view(), index.view(), index.view(), offsets.view(), none.view(), View{}, none.view(), 0, 2, 1, 0});
  std::vector<View> both(2, w.view());
  rz::ExpertGradients gradients = {dw.view(), View{}}, absent(2);
  execute(rz::ExpertsBackward{none.view(), none.view(), gradients, absent, absent, none.view(), none.view(), none.view(),
                                   none.view(), none.view(), index.view(), offsets.view(), both, both, both,
                                   std::vector<bool>(6, false), 0, 3, 2, 1});
  report("experts without rows", offsets.values() == Values(3) && dw.values() == Values(6));
}
Test registered(test_all);

}  // namespace
