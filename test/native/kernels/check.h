// A small harness: typed buffers that can be read as double, random inputs, norm-wise comparison, ok/FAIL lines.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "ops/all.h"
#include "ops/dispatch.h"

using rz::DType;
using rz::View;
using Values = std::vector<double>;

inline double read(DType t, const char* p) {
  switch (t) {
    case DType::Float32: return *reinterpret_cast<const float*>(p);
    case DType::BFloat16: return rz::to_float(*reinterpret_cast<const rz::bf16*>(p));
    case DType::Float16: return rz::to_float(*reinterpret_cast<const rz::f16*>(p));
    case DType::Int64: return static_cast<double>(*reinterpret_cast<const int64_t*>(p));
    case DType::Int32: return *reinterpret_cast<const int32_t*>(p);
    default: return static_cast<uint8_t>(*p);
  }
}

inline void write(DType t, char* p, double x) {
  auto f = static_cast<float>(x);
  switch (t) {
    case DType::Float32: *reinterpret_cast<float*>(p) = f; break;
    case DType::BFloat16: *reinterpret_cast<rz::bf16*>(p) = rz::to_bf16(f); break;
    case DType::Float16: *reinterpret_cast<rz::f16*>(p) = rz::to_f16(f); break;
    case DType::Int64: *reinterpret_cast<int64_t*>(p) = static_cast<int64_t>(x); break;
    case DType::Int32: *reinterpret_cast<int32_t*>(p) = static_cast<int32_t>(x); break;
    default: *p = static_cast<char>(x);
  }
}

// The device under test; null: the CPU. An op that the device lacks runs on the CPU, as ops that have no kernel there yet do.
rz::Stream* device_under_test();
namespace rz {
class Runtime;
}
rz::Runtime* runtime_under_test();  // of that device

template <class Op>
void execute(const Op& op) {
  rz::Stream* device = device_under_test();
  if (!device || !rz::cuda::enqueue<Op>) return rz::cpu::run(op);
  op.check();
  rz::cuda::enqueue<Op>(op, *device);
  device->synchronize();
}

// A buffer with guard bytes on both sides, checked on destruction: a kernel must not write outside its views. Under
// AddressSanitizer, which sees reads too, there are none; and every third buffer is not aligned to more than an element.
class Buffer {
 public:
  Buffer(DType t, int64_t n)
      : type(t), numel(n), shift_(next_shift() * size_of(t)), bytes_(std::max<int64_t>(1, kGuard * 2 + shift_ + n * size_of(t)), kFill) {}
  Buffer(DType t, const Values& v) : Buffer(t, static_cast<int64_t>(v.size())) {
    for (int64_t i = 0; i < numel; ++i) write(type, data() + i * size_of(type), v[i]);
  }
  Buffer(const Buffer&) = default;
  Buffer& operator=(const Buffer&) = default;
  ~Buffer();
  char* data() { return bytes_.data() + kGuard + shift_; }
  const char* data() const { return bytes_.data() + kGuard + shift_; }
  View view() { return {data(), type, numel}; }
  Values values() const {
    Values v(numel);
    for (int64_t i = 0; i < numel; ++i) v[i] = read(type, data() + i * size_of(type));
    return v;
  }
  bool same_bits(const Buffer& other) const {
    return type == other.type && numel == other.numel && std::equal(data(), data() + numel * size_of(type), other.data());
  }
  uint64_t hash() const {
    uint64_t h = 0xcbf29ce484222325ull;
    auto mix = [&h](char c) { h = (h ^ static_cast<uint8_t>(c)) * 0x100000001b3ull; };
    for (int i = 0; i < 64; ++i) mix(kFill);
    std::for_each(data(), data() + numel * size_of(type), mix);
    for (int i = 0; i < 64; ++i) mix(kFill);
    return h;
  }
  DType type;
  int64_t numel;
  static void forget_made() { made_ = 0; }

 private:
  inline static int made_ = 0;
#ifdef __SANITIZE_ADDRESS__
  static constexpr int64_t kGuard = 0;
  static int64_t next_shift() { return made_++ % 3 == 0; }
#else
  static constexpr int64_t kGuard = 64;
  static int64_t next_shift() { return 0; }
#endif
  static constexpr char kFill = 0x7b;
  int64_t shift_;
  std::vector<char> bytes_;
};

void report(const std::string& name, bool ok, const std::string& detail = "");

inline Buffer::~Buffer() {
  bool intact = true;
  if (!bytes_.empty())
    for (int64_t i = 0; i < kGuard; ++i) intact &= bytes_[i] == kFill && bytes_[bytes_.size() - 1 - i] == kFill;
  if (!intact) report("guard bytes", false);
}

// A test begins: its inputs, and where they lie, follow from its name alone, whatever ran before. Returns the name.
// RANKZERO_TEST_SEED gives it others.
std::string begin(const std::string& name);

std::mt19937& random_source();

inline Values random_values(int64_t n, double std = 1.0) {
  std::normal_distribution<double> normal(0.0, std);
  Values v(n);
  for (double& x : v) x = normal(random_source());
  return v;
}

inline Buffer random_buffer(DType t, int64_t n, double std = 1.0) { return {t, random_values(n, std)}; }

inline double tolerance(DType t) { return t == DType::Float32 ? 1e-5 : t == DType::BFloat16 ? 1e-2 : 2e-3; }

// ‖got − want‖ ≤ tolerance · max(‖want‖, floor); NaN and infinity must agree element by element. The floor is for
// results that cancel: the norm of the terms they are made of.
inline void expect_close(const std::string& name, const Values& got, const Values& want, double tol, double floor = 0) {
  double error = 0, norm = 0;
  bool special = got.size() == want.size();
  for (size_t i = 0; i < got.size() && special; ++i) {
    if (!std::isfinite(want[i]) || !std::isfinite(got[i])) {
      special = (std::isnan(want[i]) && std::isnan(got[i])) || want[i] == got[i];
      continue;
    }
    error += (got[i] - want[i]) * (got[i] - want[i]);
    norm += want[i] * want[i];
  }
  error = std::sqrt(error), norm = std::sqrt(norm);
  char text[96];
  std::snprintf(text, sizeof text, "error %.3g, norm %.3g%s", error, norm, special ? "" : ", special values differ");
  report(name, special && error <= tol * std::max(norm, floor) + 1e-30, text);
}

// `compute`: the dtype of the operands, when the result is wider.
inline void expect_close(const std::string& name, const Buffer& got, const Values& want, double floor = 0,
                         DType compute = DType::Float32) {
  expect_close(name, got.values(), want, std::max(tolerance(got.type), tolerance(compute)), floor);
}

// The result must not depend on the number of threads: `run` fills `out` from scratch.
void expect_thread_independent(const std::string& name, Buffer& out, const std::function<void()>& run);

inline std::string label(const char* op, DType t, std::initializer_list<int64_t> sizes) {
  std::string text = std::string(op) + " " + rz::name_of(t);
  for (int64_t s : sizes) text += " " + std::to_string(s);
  return text;
}

// Each *_test.cc registers one function.
struct Test {
  Test(void (*run)(), const char* file = __builtin_FILE());
};
