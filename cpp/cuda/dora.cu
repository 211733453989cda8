// DoRA: a block sums the squares of a row; a thread scales eight columns of a row; the gradient of the lengths is summed over the rows
// of each walker, then over walkers in order.
#include "ops/dora.h"

#include "cuda/column_sums.h"
#include "cuda/launch.h"
#include "cuda/reduce.h"
#include "cuda/row_grid.h"
#include "cuda/vec.h"

namespace rz::cuda {

constexpr int kThreads = 256;

template <class T>
static __global__ void row_squares(float* squares, const T* w, const T* update, int64_t rows, int64_t cols, bool aligned) {
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    float sum = 0;
    for (int64_t i = static_cast<int64_t>(threadIdx.x) * kGroup; i < cols; i += kThreads * kGroup) {
      float values[kGroup], added[kGroup];
      load_group(values, w + row * cols + i, cols - i, aligned);
      if (update) {
        load_group(added, update + row * cols + i, cols - i, aligned);
#pragma unroll
        for (int j = 0; j < kGroup; ++j) values[j] += added[j];
      }
#pragma unroll
      for (int j = 0; j < kGroup; ++j) sum += values[j] * values[j];
    }
    sum = block_sum(sum, kThreads);
    if (threadIdx.x == 0) squares[row] = sum;
  }
}

void run(const RowSquares& op, CudaStream& stream) {
  const bool aligned = op.cols * size_of(op.w.dtype) % 16 == 0 && is_aligned(op.w.data) && is_aligned(op.update.data);
  with_floating(op.w.dtype, [&](auto t) {
    using T = decltype(t);
    launch(row_squares<T>, blocks_for(op.rows * kThreads, kThreads, stream), kThreads, 0, stream, op.squares.as<float>(), op.w.as<T>(),
           op.update.as<T>(), op.rows, op.cols, aligned);
  });
}

template <class T, class M>
static __global__ void dora_forward(T* y, const T* x, const M* m, const float* squares, int64_t rows, int64_t dim, bool aligned) {
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y; row < rows; row += static_cast<int64_t>(gridDim.x) * blockDim.y)
    for (int64_t i = static_cast<int64_t>(threadIdx.x) * kGroup; i < dim; i += static_cast<int64_t>(blockDim.x) * kGroup) {
      float values[kGroup];
      load_group(values, x + row * dim + i, dim - i, aligned);
#pragma unroll
      for (int j = 0; j < kGroup; ++j)
        if (i + j < dim) values[j] *= widen(m[i + j]) / sqrtf(squares[i + j]);
      store_group(y + row * dim + i, values, dim - i, aligned);
    }
}

void run(const DoraForward& op, CudaStream& stream) {
  const RowGrid shape(op.rows, ceil_div(op.dim, kGroup), stream);
  const bool aligned = op.dim * size_of(op.x.dtype) % 16 == 0 && is_aligned(op.y.data) && is_aligned(op.x.data);
  with_floating(op.x.dtype, [&](auto t) {
    with_floating(op.m.dtype, [&](auto n) {
      using T = decltype(t);
      using M = decltype(n);
      launch(dora_forward<T, M>, shape.grid, shape.block, 0, stream, op.y.as<T>(), op.x.as<T>(), op.m.as<M>(), op.squares.as<float>(), op.rows,
             op.dim, aligned);
    });
  });
}

template <class T>
static __global__ void dora_sums(float* parts, const T* dy, const T* x, const float* squares, int64_t rows, int64_t dim, bool aligned) {
  const int64_t i = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * kGroup;
  float sums[kGroup] = {};
  for (int64_t row = blockIdx.y; row < rows; row += gridDim.y) {
    float in[kGroup], d[kGroup];
    load_group(in, x + row * dim + i, dim - i, aligned);
    load_group(d, dy + row * dim + i, dim - i, aligned);
#pragma unroll
    for (int j = 0; j < kGroup; ++j) sums[j] += d[j] * in[j];
  }
#pragma unroll
  for (int j = 0; j < kGroup; ++j)
    if (i + j < dim) sums[j] /= sqrtf(squares[i + j]);
  store_group(parts + blockIdx.y * dim + i, sums, dim - i, dim % 4 == 0);
}

void run(const DoraBackward& op, CudaStream& stream) {
  const int64_t walkers = std::min<int64_t>(op.rows, 128);
  constexpr int kWide = 128;
  auto scratch = stream.scratch(static_cast<size_t>(walkers * op.dim) * sizeof(float));
  auto* parts = static_cast<float*>(scratch->data());
  const bool aligned = op.dim * size_of(op.x.dtype) % 16 == 0 && is_aligned(op.dy.data) && is_aligned(op.x.data);
  with_floating(op.x.dtype, [&](auto t) {
    using T = decltype(t);
    const dim3 grid(static_cast<unsigned>(ceil_div(op.dim, kWide * kGroup)), static_cast<unsigned>(walkers));
    launch(dora_sums<T>, grid, kWide, 0, stream, parts, op.dy.as<T>(), op.x.as<T>(), op.squares.as<float>(), op.rows, op.dim, aligned);
  });
  write_column_sums(op.dm, parts, walkers, op.dim, op.accumulate, stream);
}

}  // namespace rz::cuda
