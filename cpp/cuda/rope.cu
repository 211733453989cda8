// Rotary position embedding: a thread turns eight pairs of one head, or copies eight elements that are not turned. Its table. And
// the same on the way from one tensor of queries, keys and values to three, and back.
#include "ops/rope.h"

#include <algorithm>
#include <initializer_list>

#include "cuda/launch.h"
#include "cuda/row_grid.h"
#include "cuda/vec.h"

namespace rz::cuda {

// The angle is rounded to float32; its cosine and sine are those of float64, rounded.
static __global__ void rope_table(float* cos_out, float* sin_out, const int64_t* positions, const float* inv_freq, int64_t rows, int half,
                                  float factor) {
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y; row < rows; row += static_cast<int64_t>(gridDim.x) * blockDim.y) {
    const float position = static_cast<float>(positions[row]);
    for (int i = static_cast<int>(threadIdx.x); i < half; i += static_cast<int>(blockDim.x)) {
      const float angle = position * inv_freq[i];
      cos_out[row * half + i] = static_cast<float>(cos(static_cast<double>(angle))) * factor;
      sin_out[row * half + i] = static_cast<float>(sin(static_cast<double>(angle))) * factor;
    }
  }
}

void run(const RopeTable& op, CudaStream& stream) {
  const RowGrid shape(op.rows, op.half, stream);
  launch(rope_table, shape.grid, shape.block, 0, stream, op.cos.as<float>(), op.sin.as<float>(), op.positions.as<int64_t>(),
         op.inv_freq.as<float>(), op.rows, op.half, op.attention_factor);
}

// How the heads of a tensor are turned. `passing`: groups of a head that are copied; none in place.
struct Turning {
  const float *cos, *sin;  // (rows, half)
  int head_dim, half, passing;
  float sign;
  bool aligned, table_aligned;

  // `places`: addresses of tensors whose heads lie one after the other.
  Turning(const View& cos, const View& sin, DType dtype, int64_t head_dim, int64_t rotary, bool passes, bool inverse,
          std::initializer_list<const void*> places)
      : cos(cos.as<float>()), sin(sin.as<float>()), head_dim(static_cast<int>(head_dim)), half(static_cast<int>(rotary / 2)),
        passing(passes ? static_cast<int>(ceil_div(head_dim - rotary, kGroup)) : 0), sign(inverse ? -1.0f : 1.0f),
        aligned(half * size_of(dtype) % 16 == 0 && head_dim * size_of(dtype) % 16 == 0 && std::all_of(places.begin(), places.end(), is_aligned)),
        table_aligned(half % 4 == 0 && is_aligned(cos.data) && is_aligned(sin.data)) {}

  __host__ __device__ __forceinline__ int turned() const { return (half + kGroup - 1) / kGroup; }
  __host__ __device__ __forceinline__ int groups() const { return turned() + passing; }

  // The elements of one group, from `c` on.
  template <class T>
  __device__ __forceinline__ void copy(T* to, const T* from, int c, int end) const {
    float values[kGroup];
    load_group(values, from + c, end - c, aligned);
    store_group(to + c, values, end - c, aligned);
  }

  // One group of a head. `to` may be `from`: a thread writes only what it has read.
  template <class T>
  __device__ __forceinline__ void turn(T* to, const T* from, int64_t row, int group) const {
    if (group >= turned()) return copy(to, from, 2 * half + (group - turned()) * kGroup, head_dim);
    const int c = group * kGroup, left = half - c;
    float a[kGroup], b[kGroup], cosine[kGroup], sine[kGroup];
    load_group(a, from + c, left, aligned);
    load_group(b, from + half + c, left, aligned);
    load_group(cosine, cos + row * half + c, left, table_aligned);
    load_group(sine, sin + row * half + c, left, table_aligned);
#pragma unroll
    for (int j = 0; j < kGroup; ++j) {
      const float u = rounded<T>(cosine[j]), v = sign * rounded<T>(sine[j]), first = a[j], second = b[j];
      a[j] = first * u - second * v;
      b[j] = second * u + first * v;
    }
    store_group(to + c, a, left, aligned);
    store_group(to + half + c, b, left, aligned);
  }
};

template <class T>
static __global__ void rope(T* y, const T* x, Turning turning, int64_t rows, int heads) {
  const int groups = turning.groups();
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y; row < rows; row += static_cast<int64_t>(gridDim.x) * blockDim.y)
    for (int i = static_cast<int>(threadIdx.x); i < heads * groups; i += static_cast<int>(blockDim.x)) {
      const int64_t start = (row * heads + i / groups) * turning.head_dim;
      turning.turn(y + start, x + start, row, i % groups);
    }
}

void run(const Rope& op, CudaStream& stream) {
  const Turning turning(op.cos, op.sin, op.x.dtype, op.head_dim, op.rotary, op.y.data != op.x.data, op.inverse, {op.y.data, op.x.data});
  const RowGrid shape(op.rows, op.heads * turning.groups(), stream);
  with_floating(op.x.dtype, [&](auto t) {
    using T = decltype(t);
    launch(rope<T>, shape.grid, shape.block, 0, stream, op.y.as<T>(), op.x.as<T>(), turning, op.rows, op.heads);
  });
}

// Heads of q and k are turned on their way out of `qkv` or into it; those of v are copied, all of a row as one.
template <class T, bool kSplit>
static __global__ void turn_parts(T* qkv, T* q, T* k, T* v, Turning turning, int64_t rows, int heads, int kv_heads) {
  const int groups = turning.groups(), turned = (heads + kv_heads) * groups, values = kv_heads * turning.head_dim;
  const int items = turned + (values + kGroup - 1) / kGroup;
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y; row < rows; row += static_cast<int64_t>(gridDim.x) * blockDim.y)
    for (int i = static_cast<int>(threadIdx.x); i < items; i += static_cast<int>(blockDim.x)) {
      const bool turns = i < turned;
      const int head = turns ? i / groups : heads + kv_heads;
      T* part = head < heads ? q + (row * heads + head) * turning.head_dim
                : turns      ? k + (row * kv_heads + head - heads) * turning.head_dim
                             : v + row * values;
      T* whole = qkv + (row * (heads + 2 * kv_heads) + head) * turning.head_dim;
      T* to = kSplit ? part : whole;
      const T* from = kSplit ? whole : part;
      if (turns) turning.turn(to, from, row, i % groups);
      else turning.copy(to, from, (i - turned) * kGroup, values);
    }
}

template <bool kSplit, class Op>
static void run_parts(const Op& op, CudaStream& stream) {
  const Turning turning(op.cos, op.sin, op.qkv.dtype, op.head_dim, op.rotary, true, !kSplit, {op.qkv.data, op.q.data, op.k.data, op.v.data});
  const RowGrid shape(op.rows, (op.heads + op.kv_heads) * turning.groups() + ceil_div(op.kv_heads * op.head_dim, kGroup), stream);
  with_floating(op.qkv.dtype, [&](auto t) {
    using T = decltype(t);
    launch(turn_parts<T, kSplit>, shape.grid, shape.block, 0, stream, op.qkv.template as<T>(), op.q.template as<T>(), op.k.template as<T>(),
           op.v.template as<T>(), turning, op.rows, op.heads, op.kv_heads);
  });
}

void run(const SplitRope& op, CudaStream& stream) { run_parts<true>(op, stream); }
void run(const MergeRope& op, CudaStream& stream) { run_parts<false>(op, stream); }

}  // namespace rz::cuda
