// Speed of the kernels on one thread (RANKZERO_BENCH_THREADS for more). kernels_bench [filter]
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <ctime>

#include "cpu/threads.h"
#include "ops/activation.h"
#include "ops/adamw.h"
#include "ops/attention.h"
#include "ops/cross_entropy.h"
#include "ops/elementwise.h"
#include "ops/embedding.h"
#include "ops/layer_norm.h"
#include "ops/linear.h"
#include "ops/qkv.h"
#include "ops/random.h"
#include "ops/rms_norm.h"
#include "ops/rope.h"

using rz::DType;
using rz::View;

static const char* filter = "";

static bool wanted(const char* family) {
  return std::strncmp(filter, family, std::min(std::strlen(filter), std::strlen(family))) == 0;
}

static View make(DType t, int64_t n) {
  auto bytes = static_cast<size_t>((n * size_of(t) + 63) / 64 * 64);
  View v{std::aligned_alloc(64, bytes), t, n};
  std::memset(v.data, 0, bytes);
  if (rz::is_floating(t)) rz::cpu::run(rz::RandomFill{v, 1, static_cast<uint64_t>(n), 0, true, 0, 0.05f});
  return v;
}

// Processor time of this thread where it works alone: other processes share the machine.
static double now() {
  timespec t;
  clock_gettime(rz::cpu::num_threads() == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &t);
  return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_nsec) * 1e-9;
}

// The best of 25 rounds of about 10 ms each.
static void time(const std::string& name, double work, const char* unit, const std::function<void()>& run) {
  if (name.find(filter) == std::string::npos) return;
  run();
  double best = 1e30;
  for (int round = 0; round < 25; ++round) {
    int count = 0;
    double start = now();
    double seconds = 0;
    while (seconds < 0.01) {
      run();
      ++count;
      seconds = now() - start;
    }
    best = std::min(best, seconds / count);
  }
  std::printf("%-44s %10.1f us %8.1f %s\n", name.c_str(), best * 1e6, work / best * 1e-9, unit);
}

static void bench_linear(DType t, int64_t rows, int64_t in, int64_t out) {
  if (!wanted("linear ")) return;
  View x = make(t, rows * in), w = make(t, out * in), y = make(t, rows * out), dw = make(DType::Float32, out * in);
  double flops = 2.0 * rows * in * out;
  std::string shape = std::string(" ") + rz::name_of(t) + " " + std::to_string(rows) + "x" + std::to_string(in) + "x" +
                      std::to_string(out);
  time("linear" + shape, flops, "GFLOP/s", [&] { rz::cpu::run(rz::LinearForward{y, x, w, {}, {}, rows, in, out}); });
  time("linear dx" + shape, flops, "GFLOP/s",
       [&] { rz::cpu::run(rz::LinearBackwardInput{x, y, w, {}, rows, in, out}); });
  time("linear dw" + shape, flops, "GFLOP/s",
       [&] { rz::cpu::run(rz::LinearBackwardWeight{dw, {}, y, x, rows, in, out, false}); });
  time("linear dw +=" + shape, flops, "GFLOP/s",
       [&] { rz::cpu::run(rz::LinearBackwardWeight{dw, {}, y, x, rows, in, out, true}); });
}

static void bench_attention(DType t, int64_t sequences, int64_t T, int64_t heads, int64_t kv_heads, int64_t dim) {
  if (!wanted("attention")) return;
  int64_t rows = sequences * T, wide = rows * heads * dim, narrow = rows * kv_heads * dim;
  View q = make(t, wide), k = make(t, narrow), v = make(t, narrow), o = make(t, wide), d_o = make(t, wide);
  View dq = make(t, wide), dk = make(t, narrow), dv = make(t, narrow), lse = make(DType::Float32, heads * rows);
  View cu = make(DType::Int32, sequences + 1);
  for (int64_t s = 0; s <= sequences; ++s) cu.as<int32_t>()[s] = static_cast<int32_t>(s * T);
  auto scale = static_cast<float>(1 / std::sqrt(dim));
  double flops = 2.0 * sequences * heads * T * (T + 1) * dim;  // causal: half of 4·T²·dim
  std::string shape = std::string(" ") + rz::name_of(t) + " " + std::to_string(sequences) + "x" + std::to_string(T) +
                      " " + std::to_string(heads) + "/" + std::to_string(kv_heads) + "x" + std::to_string(dim);
  time("attention" + shape, flops, "GFLOP/s", [&] {
    rz::cpu::run(rz::AttentionForward{o, lse, q, k, v, cu, cu, rows, rows, sequences, heads, kv_heads, dim, 0, scale});
  });
  time("attention backward" + shape, flops * 2.5, "GFLOP/s", [&] {
    rz::cpu::run(rz::AttentionBackward{dq, dk, dv, d_o, o, q, k, v, lse, cu, rows, sequences, heads, kv_heads, dim, 0,
                                       scale});
  });
}

static void bench_elementwise(DType t) {
  if (*filter && (wanted("linear") || wanted("attention"))) return;
  const int64_t rows = 512, dim = 1024, n = rows * dim;
  double bytes = static_cast<double>(n * size_of(t));
  std::string type = std::string(" ") + rz::name_of(t);
  View a = make(t, n), b = make(t, n), c = make(t, n), d = make(t, n), e = make(t, n), w = make(t, dim);
  View f = make(DType::Float32, n), m = make(DType::Float32, n), v = make(DType::Float32, n);
  View rstd = make(DType::Float32, rows), dw = make(DType::Float32, dim), one = make(DType::Float32, 1);
  time("copy to float32" + type, bytes + 4 * n, "GB/s", [&] { rz::cpu::run(rz::Copy{f, a}); });
  time("copy from float32" + type, bytes + 4 * n, "GB/s", [&] { rz::cpu::run(rz::Copy{a, f}); });
  time("add" + type, 3 * bytes, "GB/s", [&] { rz::cpu::run(rz::Add{c, a, b}); });
  time("scale" + type, 2 * bytes, "GB/s", [&] { rz::cpu::run(rz::Scale{c, a, {}, 0.5f, false}); });
  time("sum_squares" + type, bytes, "GB/s", [&] { rz::cpu::run(rz::SumSquares{one, a, false}); });
  time("swiglu" + type, 3 * bytes, "GB/s", [&] { rz::cpu::run(rz::SwigluForward{c, a, b}); });
  time("swiglu backward" + type, 5 * bytes, "GB/s", [&] { rz::cpu::run(rz::SwigluBackward{d, e, c, a, b}); });
  time("gelu" + type, 2 * bytes, "GB/s", [&] { rz::cpu::run(rz::GeluForward{c, a, false}); });
  time("gelu backward" + type, 3 * bytes, "GB/s", [&] { rz::cpu::run(rz::GeluBackward{d, c, a, false}); });
  time("rms_norm" + type, 2 * bytes, "GB/s", [&] { rz::cpu::run(rz::RmsNormForward{c, rstd, a, w, rows, dim, 1e-5f}); });
  time("rms_norm backward" + type, 3 * bytes, "GB/s",
       [&] { rz::cpu::run(rz::RmsNormBackward{d, dw, c, a, w, rstd, {}, rows, dim, false}); });
  View mean = make(DType::Float32, rows), bias = make(t, dim), db = make(DType::Float32, dim);
  time("layer_norm" + type, 2 * bytes, "GB/s",
       [&] { rz::cpu::run(rz::LayerNormForward{c, mean, rstd, a, w, bias, rows, dim, 1e-5f}); });
  time("layer_norm backward" + type, 3 * bytes, "GB/s", [&] {
    rz::cpu::run(rz::LayerNormBackward{d, dw, db, c, a, w, mean, rstd, rows, dim, false, false});
  });
  time("split_qkv" + type, 2 * bytes, "GB/s", [&] {
    const int64_t cells = rows * dim / 64 / 3, part = cells * 64;
    View q{c.data, t, part}, k{d.data, t, part}, v{e.data, t, part}, qkv{a.data, t, 3 * part};
    rz::cpu::run(rz::SplitQkv{q, k, v, qkv, cells, 1, 64});
  });
  View cos = make(DType::Float32, rows * 32), sin = make(DType::Float32, rows * 32);
  time("rope" + type, 2 * bytes, "GB/s", [&] { rz::cpu::run(rz::Rope{c, a, cos, sin, rows, dim / 64, 64, 64, false}); });
  time("adamw" + type, 2 * bytes + 16 * n, "GB/s",
       [&] { rz::cpu::run(rz::AdamW{a, b, m, v, {}, {}, {}, 1e-3, 0.9, 0.999, 1e-8, 0.1, 10}); });
  time("normal" + type, bytes, "GB/s", [&] { rz::cpu::run(rz::RandomFill{c, 1, 2, 0, true, 0, 1}); });
  time("uniform" + type, bytes, "GB/s", [&] { rz::cpu::run(rz::RandomFill{c, 1, 2, 0, false, 0, 1}); });
}

static void bench_cross_entropy(DType t, int64_t rows, int64_t dim, int64_t vocab) {
  if (!wanted("linear_cross")) return;
  View x = make(t, rows * dim), w = make(t, vocab * dim), dx = make(t, rows * dim), dw = make(DType::Float32, vocab * dim);
  View labels = make(DType::Int64, rows), loss = make(DType::Float32, 1);
  time("linear_cross_entropy " + std::string(rz::name_of(t)) + " vocab " + std::to_string(vocab), 6.0 * rows * dim * vocab, "GFLOP/s",
       [&] { rz::cpu::run(rz::LinearCrossEntropy{loss, dx, dw, x, w, labels, rows, dim, vocab, 0, false}); });
}

int main(int argc, char** argv) {
  if (argc > 1) filter = argv[1];
  const char* threads = std::getenv("RANKZERO_BENCH_THREADS");
  rz::cpu::set_num_threads(threads ? std::atoi(threads) : 1);
  std::printf("isa %s, oneDNN %s\n", rz::cpu::isa_name(), rz::cpu::dnnl_version());
  for (DType t : {DType::Float32, DType::BFloat16}) {
    bench_linear(t, 512, 512, 1408);
    bench_linear(t, 512, 512, 512);
    bench_linear(t, 512, 2048, 5632);
    bench_linear(t, 40, 512, 512);
    bench_attention(t, 1, 256, 8, 8, 64);
    bench_attention(t, 1, 512, 8, 8, 64);
    bench_attention(t, 1, 2048, 8, 8, 64);
    bench_attention(t, 1, 512, 8, 2, 64);
    bench_attention(t, 32, 40, 8, 8, 64);
    bench_attention(t, 1, 512, 8, 8, 128);
    bench_cross_entropy(t, 512, 512, 8192);
    bench_cross_entropy(t, 512, 512, 32000);
    bench_elementwise(t);
  }
}
