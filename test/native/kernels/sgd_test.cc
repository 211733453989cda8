#include "check.h"
#include "ops/sgd.h"

struct SgdCase {
  double momentum, dampening;
  bool nesterov;
};

static void test_sgd(DType pt, DType gt, bool segmented, SgdCase c) {
  const std::string name = begin(label("sgd", pt, {segmented, c.nesterov}) + " " + rz::name_of(gt) + (c.momentum > 0 ? " with momentum" : ""));
  const int64_t n = 10003;
  Buffer p = random_buffer(pt, n), buffer(DType::Float32, Values(n));
  Buffer segments(DType::Int64, Values{3, 10, 10, 500, 800, 10003}), factor(DType::Float32, Values{0.25});
  Values pv = p.values(), bv(n);
  const bool copies = pt == DType::Float32;
  Buffer copy(DType::BFloat16, n);
  const double lr = 1e-2, wd = 0.1;
  for (int64_t step = 1; step <= 5; ++step) {
    Buffer g = random_buffer(gt, n);
    Values gv = g.values();
    for (int64_t i = 0; i < n; ++i) {
      double grad = gv[i] * 0.25;
      bool decays = !segmented || (i >= 3 && i < 500) || i >= 800;
      if (decays) grad += wd * pv[i];
      if (c.momentum > 0) {
        bv[i] = step == 1 ? grad : bv[i] * c.momentum + (1 - c.dampening) * grad;
        grad = c.nesterov ? grad + c.momentum * bv[i] : bv[i];
      }
      pv[i] -= lr * grad;
    }
    execute(rz::Sgd{p.view(), g.view(), c.momentum > 0 ? buffer.view() : View{}, segmented ? segments.view() : View{}, factor.view(),
                    copies ? copy.view() : View{}, lr, c.momentum, c.dampening, wd, c.nesterov, step});
  }
  expect_close(name, p.values(), pv, pt == DType::Float32 ? 1e-6 : 1e-2);
  if (copies) report(name + ": the copy is the rounded parameter", copy.same_bits(Buffer(DType::BFloat16, p.values())));
  if (c.momentum > 0) expect_close(name + " buffer", buffer.values(), bv, pt == DType::Float32 ? 1e-6 : 1e-2);
}

static void test_all() {
  for (bool segmented : {false, true})
    for (SgdCase c : {SgdCase{0, 0, false}, SgdCase{0.9, 0.3, false}, SgdCase{0.9, 0, true}}) {
      test_sgd(DType::Float32, DType::Float32, segmented, c);
      test_sgd(DType::Float32, DType::BFloat16, segmented, c);
      test_sgd(DType::BFloat16, DType::BFloat16, segmented, c);
    }
}
static Test registered(test_all);
