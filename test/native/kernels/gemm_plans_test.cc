// GEMMs of row counts of one class, and with proposals timed: right, whatever algorithm was taken. Which calls the library gets,
// test/emulated/kernels.test.ts reads.
#include "check.h"
#include "core/runtime.h"
#include "ops/linear.h"

static void test_rows(int64_t rows, bool accumulate, bool bias) {
  const int64_t in = 8, out = 3;
  const std::string name = begin(label("gemm_plans", DType::Float32, {rows, accumulate, bias}));
  Buffer x = random_buffer(DType::Float32, rows * in), w = random_buffer(DType::Float32, out * in), b = random_buffer(DType::Float32, out);
  Buffer y = random_buffer(DType::Float32, rows * out);
  Values xv = x.values(), wv = w.values(), bv = b.values(), want = accumulate ? y.values() : Values(rows * out);
  for (int64_t i = 0; i < rows * out; ++i) {
    if (bias) want[i] += bv[i % out];
    for (int64_t p = 0; p < in; ++p) want[i] += xv[i / out * in + p] * wv[i % out * in + p];
  }
  execute(rz::LinearForward{y.view(), x.view(), w.view(), bias ? b.view() : View{}, accumulate ? y.view() : View{}, rows, in, out});
  expect_close(name, y, want);
}

static void test_all() {
  if (!device_under_test()) return;
  rz::KernelChoices& choices = runtime_under_test()->cuda().kernels();
  const rz::KernelChoices before = choices;
  for (int64_t rows : {130, 140, 144, 145, 130}) test_rows(rows, false, false);
  choices.gemm_trials = 4;
  choices.gemm_least_timed = 1;
  test_rows(131, true, false);  // cannot be repeated
  for (int64_t rows : {131, 132, 133}) test_rows(rows, false, false);
  test_rows(134, true, false);
  test_rows(135, false, true);
  choices = before;
}
static Test registered(test_all);
