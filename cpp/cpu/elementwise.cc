// Fill, copy and cast, add, scale, sum of squares. Same dtypes run in one pass; mixed ones go through float32 tiles that
// stay in the first-level cache.
#include "ops/elementwise.h"

#include <cmath>
#include <cstring>

#include "cpu/parallel.h"
#include "cpu/scratch.h"
#include "cpu/simd.h"

namespace rz::cpu {

constexpr int64_t kGrain = 1 << 15;  // elements: below, a second thread costs more than it brings
constexpr int64_t kTile = 1024;

template <class T>
static void fill_with(const View& x, T value) {
  parallel_for(x.numel, kGrain, [&](int64_t begin, int64_t end) {
    std::fill(x.as<T>() + begin, x.as<T>() + end, value);
  });
}

void run(const Fill& op) {
  switch (op.x.dtype) {
    case DType::Float32: return fill_with(op.x, static_cast<float>(op.value));
    case DType::BFloat16: return fill_with(op.x, to_bf16(static_cast<float>(op.value)).bits);
    case DType::Float16: return fill_with(op.x, to_f16(static_cast<float>(op.value)).bits);
    case DType::Int64: return fill_with(op.x, static_cast<int64_t>(op.value));
    case DType::Int32: return fill_with(op.x, static_cast<int32_t>(op.value));
    case DType::UInt8: return fill_with(op.x, static_cast<uint8_t>(op.value));
  }
}

// n elements of src from `s` to dst from `d`, on this thread.
static void copy_range(const View& dst, int64_t d, const View& src, int64_t s, int64_t n) {
  const Table& t = simd();
  if (dst.dtype == src.dtype) {
    std::memmove(at(dst, d), at(src, s), static_cast<size_t>(n * size_of(dst.dtype)));
  } else if (dst.dtype == DType::Float32) {
    t.to_f32[index_of(src.dtype)](dst.as<float>() + d, at(src, s), n);
  } else if (src.dtype == DType::Float32) {
    t.from_f32[index_of(dst.dtype)](at(dst, d), src.as<float>() + s, n);
  } else {
    float tile[kTile];
    for (int64_t i = 0; i < n; i += kTile) {
      int64_t part = std::min(kTile, n - i);
      t.to_f32[index_of(src.dtype)](tile, at(src, s + i), part);
      t.from_f32[index_of(dst.dtype)](at(dst, d + i), tile, part);
    }
  }
}

void run(const Copy& op) {
  parallel_for(op.dst.numel, kGrain,
               [&](int64_t begin, int64_t end) { copy_range(op.dst, begin, op.src, begin, end - begin); });
}

void run(const CopyRows& op) {
  if (op.cols == 0) return;
  parallel_for(op.rows, std::max<int64_t>(1, kGrain / op.cols), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r)
      copy_range(op.dst, op.dst_offset + r * op.dst_pitch, op.src, op.src_offset + r * op.src_pitch, op.cols);
  });
}

void run(const Add& op) {
  const Table& t = simd();
  DType y = op.y.dtype, a = op.a.dtype, b = op.b.dtype;
  parallel_for(op.y.numel, kGrain, [&](int64_t begin, int64_t end) {
    int64_t n = end - begin;
    if (y == a && a == b) return t.add[index_of(y)](at(op.y, begin), at(op.a, begin), at(op.b, begin), n);
    if (y == DType::Float32 && a == y)
      return t.add_to_f32[index_of(b)](op.y.as<float>() + begin, op.a.as<float>() + begin, at(op.b, begin), n);
    float left[kTile], right[kTile];
    for (int64_t i = begin; i < end; i += kTile) {
      n = std::min(kTile, end - i);
      t.to_f32[index_of(a)](left, at(op.a, i), n);
      t.to_f32[index_of(b)](right, at(op.b, i), n);
      t.add[0](left, left, right, n);
      t.from_f32[index_of(y)](at(op.y, i), left, n);
    }
  });
}

void run(const Scale& op) {
  const Table& t = simd();
  float factor = op.factor * (op.by ? *op.by.as<float>() : 1.0f);
  DType y = op.y.dtype, x = op.x.dtype;
  parallel_for(op.y.numel, kGrain, [&](int64_t begin, int64_t end) {
    if (y == x) {
      auto kernel = op.accumulate ? t.scale_add[index_of(y)] : t.scale[index_of(y)];
      return kernel(at(op.y, begin), at(op.x, begin), factor, end - begin);
    }
    float value[kTile], sum[kTile];
    for (int64_t i = begin; i < end; i += kTile) {
      int64_t n = std::min(kTile, end - i);
      t.to_f32[index_of(x)](value, at(op.x, i), n);
      if (op.accumulate) {
        t.to_f32[index_of(y)](sum, at(op.y, i), n);
        t.scale_add[0](sum, value, factor, n);
      } else {
        t.scale[0](sum, value, factor, n);
      }
      t.from_f32[index_of(y)](at(op.y, i), sum, n);
    }
  });
}

// Fixed blocks, summed in order: the result does not depend on the number of threads.
void run(const SumSquares& op) {
  constexpr int64_t kBlock = 1 << 14;
  int64_t blocks = (op.x.numel + kBlock - 1) / kBlock;
  Scratch scratch(blocks * 8);
  double* sums = scratch.as<double>();
  parallel_for(blocks, 4, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b)
      sums[b] = simd().sum_squares[index_of(op.x.dtype)](at(op.x, b * kBlock),
                                                         std::min(kBlock, op.x.numel - b * kBlock));
  });
  double total = op.accumulate ? *op.out.as<float>() : 0.0;
  for (int64_t b = 0; b < blocks; ++b) total += sums[b];
  *op.out.as<float>() = static_cast<float>(total);
}

void run(const ClipFactor& op) {
  float norm = std::sqrt(*op.sum.as<float>());
  float factor = op.max_norm / (norm + 1e-6f);
  *op.norm.as<float>() = norm;
  *op.factor.as<float>() = factor > 1.0f ? 1.0f : factor;  // a NaN norm gives a NaN factor, as in PyTorch
}

}  // namespace rz::cpu
