// Rotary position embedding: a thread turns eight pairs of one head, or copies eight elements that are not turned. And its table.
#include "ops/rope.h"

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

// `passing`: groups of a head that are copied; none in place. y may be x: a thread writes only what it has read.
template <class T>
static __global__ void rope(T* y, const T* x, const float* cos_of, const float* sin_of, int64_t rows, int heads, int head_dim, int half,
                            int passing, float sign, bool aligned, bool table_aligned) {
  const int turned = (half + kGroup - 1) / kGroup, groups = turned + passing;
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y; row < rows; row += static_cast<int64_t>(gridDim.x) * blockDim.y)
    for (int i = static_cast<int>(threadIdx.x); i < heads * groups; i += static_cast<int>(blockDim.x)) {
      const int head = i / groups, group = i % groups;
      const int64_t start = (row * heads + head) * head_dim;
      if (group >= turned) {
        const int c = 2 * half + (group - turned) * kGroup;
        float values[kGroup];
        load_group(values, x + start + c, head_dim - c, aligned);
        store_group(y + start + c, values, head_dim - c, aligned);
        continue;
      }
      const int c = group * kGroup, left = half - c;
      float a[kGroup], b[kGroup], cosine[kGroup], sine[kGroup];
      load_group(a, x + start + c, left, aligned);
      load_group(b, x + start + half + c, left, aligned);
      load_group(cosine, cos_of + row * half + c, left, table_aligned);
      load_group(sine, sin_of + row * half + c, left, table_aligned);
#pragma unroll
      for (int j = 0; j < kGroup; ++j) {
        const float u = rounded<T>(cosine[j]), v = sign * rounded<T>(sine[j]), first = a[j], second = b[j];
        a[j] = first * u - second * v;
        b[j] = second * u + first * v;
      }
      store_group(y + start + c, a, left, aligned);
      store_group(y + start + half + c, b, left, aligned);
    }
}

void run(const Rope& op, CudaStream& stream) {
  const int64_t half = op.rotary / 2, size = size_of(op.x.dtype);
  const int64_t passing = op.y.data == op.x.data ? 0 : ceil_div(op.head_dim - op.rotary, kGroup);
  const bool aligned = half * size % 16 == 0 && op.head_dim * size % 16 == 0 && is_aligned(op.y.data) && is_aligned(op.x.data);
  const bool table_aligned = half % 4 == 0 && is_aligned(op.cos.data) && is_aligned(op.sin.data);
  const RowGrid shape(op.rows, op.heads * (ceil_div(half, kGroup) + passing), stream);
  with_floating(op.x.dtype, [&](auto t) {
    using T = decltype(t);
    launch(rope<T>, shape.grid, shape.block, 0, stream, op.y.as<T>(), op.x.as<T>(), op.cos.as<float>(), op.sin.as<float>(), op.rows, op.heads,
           op.head_dim, half, passing, op.inverse ? -1.0f : 1.0f, aligned, table_aligned);
  });
}

}  // namespace rz::cuda
