#include "comm/reduce.h"

#include <algorithm>
#include <cstring>

#include "core/error.h"

// One body, compiled for several instruction sets and chosen when the addon is loaded.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define RZ_CLONES __attribute__((target_clones("arch=skylake-avx512", "arch=haswell", "default")))
#else
#define RZ_CLONES
#endif

namespace rz::comm {
namespace {

constexpr int64_t kBlock = 2048;  // float32 accumulators that stay in the first-level cache

RZ_CLONES void load_f32(float* acc, const float* x, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) acc[i] = x[i];
}
RZ_CLONES void load_bf16(float* acc, const bf16* x, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) acc[i] = to_float(x[i]);
}
RZ_CLONES void load_f16(float* acc, const f16* x, int64_t n) {
  for (int64_t i = 0; i < n; ++i) acc[i] = to_float(x[i]);
}
RZ_CLONES void add_f32(float* acc, const float* x, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) acc[i] += x[i];
}
RZ_CLONES void add_bf16(float* acc, const bf16* x, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) acc[i] += to_float(x[i]);
}
RZ_CLONES void max_f32(float* acc, const float* x, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) acc[i] = x[i] > acc[i] || x[i] != x[i] ? x[i] : acc[i];
}
RZ_CLONES void min_f32(float* acc, const float* x, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) acc[i] = x[i] < acc[i] || x[i] != x[i] ? x[i] : acc[i];
}
RZ_CLONES void divide_f32(float* acc, float by, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) acc[i] /= by;
}
// The common case in one pass: the sum of two, times one half for the average. out may be a, b or apart.
RZ_CLONES void sum_pair_f32(float* out, const float* a, const float* b, float factor, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) out[i] = (a[i] + b[i]) * factor;
}
// Branch-free form of to_bf16.
RZ_CLONES void store_bf16(bf16* out, const float* acc, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    uint32_t u = std::bit_cast<uint32_t>(acc[i]);
    uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1)) >> 16, quiet = (u >> 16) | 0x40;
    out[i].bits = static_cast<uint16_t>((u & 0x7fffffffu) > 0x7f800000u ? quiet : rounded);
  }
}
RZ_CLONES void store_f16(f16* out, const float* acc, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = to_f16(acc[i]);
}

void load(float* acc, const void* x, DType type, int64_t at, int64_t n) {
  switch (type) {
    case DType::Float32: return load_f32(acc, static_cast<const float*>(x) + at, n);
    case DType::BFloat16: return load_bf16(acc, static_cast<const bf16*>(x) + at, n);
    default: return load_f16(acc, static_cast<const f16*>(x) + at, n);
  }
}

void store(void* out, DType type, int64_t at, const float* acc, int64_t n) {
  switch (type) {
    case DType::Float32: std::memcpy(static_cast<float*>(out) + at, acc, static_cast<size_t>(n) * 4); return;
    case DType::BFloat16: return store_bf16(static_cast<bf16*>(out) + at, acc, n);
    default: return store_f16(static_cast<f16*>(out) + at, acc, n);
  }
}

void combine(float* acc, const void* x, DType type, int64_t at, int64_t n, ReduceOp op) {
  bool sum = op == ReduceOp::Sum || op == ReduceOp::Avg;
  if (sum && type == DType::Float32) return add_f32(acc, static_cast<const float*>(x) + at, n);
  if (sum && type == DType::BFloat16) return add_bf16(acc, static_cast<const bf16*>(x) + at, n);
  float other[kBlock];
  load(other, x, type, at, n);
  if (sum) return add_f32(acc, other, n);
  op == ReduceOp::Max ? max_f32(acc, other, n) : min_f32(acc, other, n);
}

template <class T>
void reduce_integers(T* out, const void* const* sources, int num_sources, int64_t count, ReduceOp op, bool accumulate) {
  for (int64_t i = 0; i < count; ++i) {
    T value = static_cast<const T*>(sources[0])[i];
    for (int s = 1; s < num_sources; ++s) {
      T x = static_cast<const T*>(sources[s])[i];
      value = op == ReduceOp::Max ? std::max(value, x) : op == ReduceOp::Min ? std::min(value, x) : static_cast<T>(value + x);
    }
    out[i] = accumulate ? static_cast<T>(out[i] + value) : value;
  }
}

}  // namespace

void cast_copy(void* out, DType out_type, const void* in, DType in_type, int64_t count) {
  if (out_type == in_type) {
    if (out != in) std::memcpy(out, in, static_cast<size_t>(count * size_of(in_type)));
    return;
  }
  if (in_type == DType::Float32) return store(out, out_type, 0, static_cast<const float*>(in), count);
  if (out_type == DType::Float32) return load(static_cast<float*>(out), in, in_type, 0, count);
  float block[kBlock];
  for (int64_t at = 0; at < count; at += kBlock) {
    int64_t n = std::min(kBlock, count - at);
    load(block, in, in_type, at, n);
    store(out, out_type, at, block, n);
  }
}

void reduce(void* out, DType out_type, const void* const* sources, DType in_type, int num_sources, int64_t count, ReduceOp op, bool accumulate,
            int num_averaged) {
  if (num_averaged == 0) num_averaged = num_sources;
  switch (in_type) {
    case DType::Int64: return reduce_integers(static_cast<int64_t*>(out), sources, num_sources, count, op, accumulate);
    case DType::Int32: return reduce_integers(static_cast<int32_t*>(out), sources, num_sources, count, op, accumulate);
    case DType::UInt8: return reduce_integers(static_cast<uint8_t*>(out), sources, num_sources, count, op, accumulate);
    default: break;
  }
  const bool sums = op == ReduceOp::Sum || op == ReduceOp::Avg;
  if (num_sources == 2 && num_averaged == 2 && sums && !accumulate && in_type == DType::Float32 && out_type == DType::Float32)
    return sum_pair_f32(static_cast<float*>(out), static_cast<const float*>(sources[0]), static_cast<const float*>(sources[1]),
                        op == ReduceOp::Avg ? 0.5f : 1.0f, count);
  alignas(64) float acc[kBlock];
  for (int64_t at = 0; at < count; at += kBlock) {
    int64_t n = std::min(kBlock, count - at);
    load(acc, sources[0], in_type, at, n);
    for (int s = 1; s < num_sources; ++s) combine(acc, sources[s], in_type, at, n, op);
    if (op == ReduceOp::Avg) divide_f32(acc, static_cast<float>(num_averaged), n);
    if (accumulate) combine(acc, out, out_type, at, n, ReduceOp::Sum);
    store(out, out_type, at, acc, n);
  }
}

}  // namespace rz::comm
