#include <algorithm>

#include "check.h"
#include "core/philox.h"
#include "ops/adamw.h"
#include "ops/random.h"

static void test_adamw(DType pt, DType gt, bool segmented) {
  const std::string name = begin(label("adamw", pt, {segmented}) + " " + rz::name_of(gt));
  const int64_t n = 10003;
  Buffer p = random_buffer(pt, n), m(DType::Float32, Values(n)), v(DType::Float32, Values(n));
  Buffer segments(DType::Int64, Values{3, 10, 10, 500, 800, 10003}), factor(DType::Float32, Values{0.25});
  Values pv = p.values(), mv(n), vv(n);
  const bool copies = pt == DType::Float32;
  Buffer copy(DType::BFloat16, n);
  const double lr = 1e-2, b1 = 0.9, b2 = 0.999, eps = 1e-8, wd = 0.1;
  for (int64_t step = 1; step <= 5; ++step) {
    Buffer g = random_buffer(gt, n);
    Values gv = g.values();
    for (int64_t i = 0; i < n; ++i) {
      double grad = gv[i] * 0.25;
      bool decays = !segmented || (i >= 3 && i < 500) || i >= 800;
      if (decays) pv[i] *= 1 - lr * wd;
      mv[i] += (1 - b1) * (grad - mv[i]);
      vv[i] = b2 * vv[i] + (1 - b2) * grad * grad;
      pv[i] -= lr / (1 - std::pow(b1, step)) * mv[i] / (std::sqrt(vv[i]) / std::sqrt(1 - std::pow(b2, step)) + eps);
    }
    execute(rz::AdamW{p.view(), g.view(), m.view(), v.view(), segmented ? segments.view() : View{}, factor.view(),
                           copies ? copy.view() : View{}, lr, b1, b2, eps, wd, step});
  }
  expect_close(name, p.values(), pv, pt == DType::Float32 ? 1e-6 : 1e-2);
  if (copies) report(name + ": the copy is the rounded parameter", copy.same_bits(Buffer(DType::BFloat16, p.values())));
  expect_close(name + " exp_avg", m.values(), mv, 1e-6);
  expect_close(name + " exp_avg_sq", v.values(), vv, 1e-6);
}

static constexpr uint64_t kNormalBits = 0x335c7876fb0d0db6, kUniformBits = 0x062bc48ad439f4d9;

static Buffer draw(DType t, int64_t n, int64_t offset, bool normal, uint64_t seed = 42) {
  Buffer x(t, n);
  execute(rz::RandomFill{x.view(), seed, rz::philox::key_of("model.embed_tokens.weight"), offset, normal,
                              normal ? 0.0f : -1.0f, normal ? 1.0f : 1.0f});
  return x;
}

static void test_random() {
  const uint64_t key = rz::philox::key_of("model.embed_tokens.weight");
  Buffer u = draw(DType::Float32, 1003, 0, false);
  Values uv = u.values();
  bool exact = true;
  for (int64_t i = 0; i < 1003; ++i)
    exact &= uv[i] == -1.0f + 2.0f * rz::philox::uniform(rz::philox::block(42, key, i / 4)[i % 4]);
  report("uniform is Philox, word by word", exact);

  const int64_t n = 4000001;
  Buffer z = draw(DType::Float32, n, 0, true);
  for (int64_t offset : {1, 3, 255, 256, 1022, 100001}) {
    Buffer part = draw(DType::Float32, 777, offset, true);
    report("a sub-range has the same bits, from " + std::to_string(offset),
           std::equal(part.data(), part.data() + 777 * 4, z.data() + offset * 4));
  }
  Values v = z.values();
  double mean = 0, second = 0, third = 0, fourth = 0, lag = 0, top = 0;
  for (int64_t i = 0; i < n; ++i) {
    mean += v[i], second += v[i] * v[i], third += v[i] * v[i] * v[i], fourth += std::pow(v[i], 4);
    top = std::max(top, std::abs(v[i]));
    if (i) lag += v[i] * v[i - 1];
  }
  auto near = [&](const char* what, double got, double want, double sigma) {
    report(what, std::abs(got / n - want) < 4 * sigma / std::sqrt(n), std::to_string(got / n));
  };
  near("normal mean", mean, 0, 1);
  near("normal variance", second, 1, std::sqrt(2));
  near("normal third moment", third, 0, std::sqrt(15));
  near("normal fourth moment", fourth, 3, std::sqrt(96));
  near("normal neighbours uncorrelated", lag, 0, 1);
  report("normal tail", top > 4.7 && top < 6.6, std::to_string(top));
  std::sort(v.begin(), v.end());
  double ks = 0;
  for (int64_t i = 0; i < n; ++i) ks = std::max(ks, std::abs((i + 0.5) / n - 0.5 * std::erfc(-v[i] / std::sqrt(2.0))));
  report("normal distribution (Kolmogorov-Smirnov)", ks * std::sqrt(n) < 1.63, std::to_string(ks * std::sqrt(n)));

  // Frozen bits: the same on every instruction set, machine and release.
  uint64_t hash = draw(DType::Float32, 100000, 7, true).hash(), uniform_hash = draw(DType::Float32, 100000, 7, false).hash();
  char text[64];
  std::snprintf(text, sizeof text, "0x%016lx 0x%016lx", hash, uniform_hash);
  report("frozen bits of normal and uniform", hash == kNormalBits && uniform_hash == kUniformBits, text);
  Buffer half = draw(DType::BFloat16, 5000, 9, true);
  report("bfloat16 is the rounded float32", half.same_bits(Buffer(DType::BFloat16, draw(DType::Float32, 5000, 9, true).values())));
  Buffer out(DType::Float32, 100003);
  expect_thread_independent("random_fill", out, [&] { out = draw(DType::Float32, 100003, 5, true); });
}

static void test_all() {
  for (bool segmented : {false, true}) {
    test_adamw(DType::Float32, DType::Float32, segmented);
    test_adamw(DType::Float32, DType::BFloat16, segmented);
    test_adamw(DType::BFloat16, DType::BFloat16, segmented);
    test_adamw(DType::BFloat16, DType::Float32, segmented);
  }
  test_random();
}
static Test registered(test_all);
