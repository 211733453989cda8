// LayerNorm. A row belongs to a warp if it is short, else to a block, which keeps it in registers: x is read once, and mean and
// variance are two sums over what is kept. The gradients of weight and bias are summed over the rows of each block, then over
// blocks in order.
#include "ops/layer_norm.h"

#include "cuda/column_sums.h"
#include "cuda/grid.h"
#include "cuda/launch.h"
#include "cuda/reduce.h"
#include "cuda/row_shape.h"
#include "cuda/vec.h"

namespace rz::cuda {

template <class T>
static __global__ void layer_norm_forward(T* y, float* means, float* rstd, const T* x, const T* w, const T* b, int64_t rows, int64_t dim,
                                          float eps, bool aligned) {
  const int threads = static_cast<int>(blockDim.x);
  const int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  if (row >= rows) return;  // whole warps only
  float kept[kGroupsKept][kGroup], sum = 0, squares = 0;
#pragma unroll
  for (int k = 0; k < kGroupsKept; ++k) {
    const int64_t i = (static_cast<int64_t>(k) * threads + threadIdx.x) * kGroup;
    load_group(kept[k], x + row * dim + i, dim - i, aligned);
#pragma unroll
    for (int j = 0; j < kGroup; ++j) sum += kept[k][j];
  }
  const float mean = block_sum(sum, threads) / static_cast<float>(dim);
#pragma unroll
  for (int k = 0; k < kGroupsKept; ++k) {
    const int64_t i = (static_cast<int64_t>(k) * threads + threadIdx.x) * kGroup;
#pragma unroll
    for (int j = 0; j < kGroup; ++j) {
      kept[k][j] -= mean;
      if (i + j < dim) squares += kept[k][j] * kept[k][j];
    }
  }
  const float scale = 1.0f / sqrtf(block_sum(squares, threads) / static_cast<float>(dim) + eps);
  if (threadIdx.x == 0) {
    means[row] = mean;
    rstd[row] = scale;
  }
#pragma unroll
  for (int k = 0; k < kGroupsKept; ++k) {
    const int64_t i = (static_cast<int64_t>(k) * threads + threadIdx.x) * kGroup;
    float weight[kGroup], bias[kGroup];
    load_group(weight, w + i, dim - i, aligned);
    load_group(bias, b + i, dim - i, aligned);
#pragma unroll
    for (int j = 0; j < kGroup; ++j) kept[k][j] = kept[k][j] * scale * weight[j] + bias[j];
    store_group(y + row * dim + i, kept[k], dim - i, aligned);
  }
}

void run(const LayerNormForward& op, CudaStream& stream) {
  if (op.rows == 0) return;
  const RowShape shape(LayerNormForward::name, op.dim);
  const bool aligned = op.dim * size_of(op.x.dtype) % 16 == 0 && is_aligned(op.y.data) && is_aligned(op.x.data) && is_aligned(op.w.data) &&
                       is_aligned(op.b.data);
  with_floating(op.x.dtype, [&](auto t) {
    using T = decltype(t);
    launch(layer_norm_forward<T>, shape.blocks(op.rows), shape.block(), 0, stream, op.y.as<T>(), op.mean.as<float>(), op.rstd.as<float>(),
           op.x.as<T>(), op.w.as<T>(), op.b.as<T>(), op.rows, op.dim, op.eps, aligned);
  });
}

constexpr int kThreadsWithSums = 512;  // at most: with the sums of two gradients a thread needs more than 64 registers

// parts: (2, walkers, dim), of dw, then of db: one row for each of the walkers that go over the rows. Without kSums they are not made.
template <class T, bool kSums>
static __global__ void __launch_bounds__(kSums ? kThreadsWithSums : 1024)
    layer_norm_backward(T* dx, float* parts, const T* dy, const T* x, const T* w, const float* means, const float* rstd, int64_t rows, int dim,
                        bool aligned) {
  const int threads = static_cast<int>(blockDim.x);
  const int64_t walker = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  const int64_t walkers = static_cast<int64_t>(gridDim.x) * blockDim.y;
  float dw[kSums ? kGroupsKept : 1][kGroup] = {}, db[kSums ? kGroupsKept : 1][kGroup] = {};
  for (int64_t row = walker; row < rows; row += walkers) {
    const float mean = means[row], scale = rstd[row];
    float hat[kGroupsKept][kGroup], along[kGroupsKept][kGroup], sum = 0, dot = 0;
#pragma unroll
    for (int k = 0; k < kGroupsKept; ++k) {
      const int i = (k * threads + static_cast<int>(threadIdx.x)) * kGroup;
      float weight[kGroup];
      load_group(hat[k], x + row * dim + i, dim - i, aligned);
      load_group(along[k], dy + row * dim + i, dim - i, aligned);
      load_group(weight, w + i, dim - i, aligned);
#pragma unroll
      for (int j = 0; j < kGroup; ++j) {
        hat[k][j] = (hat[k][j] - mean) * scale;
        if constexpr (kSums) {
          dw[k][j] += along[k][j] * hat[k][j];
          db[k][j] += along[k][j];
        }
        along[k][j] *= weight[j];
        sum += along[k][j];
        dot += along[k][j] * hat[k][j];
      }
    }
    const float shift = block_sum(sum, threads) / static_cast<float>(dim), tilt = block_sum(dot, threads) / static_cast<float>(dim);
#pragma unroll
    for (int k = 0; k < kGroupsKept; ++k) {
      const int i = (k * threads + static_cast<int>(threadIdx.x)) * kGroup;
#pragma unroll
      for (int j = 0; j < kGroup; ++j) along[k][j] = (along[k][j] - shift - hat[k][j] * tilt) * scale;
      store_group(dx + row * dim + i, along[k], dim - i, aligned);
    }
  }
  if constexpr (kSums)
#pragma unroll
    for (int k = 0; k < kGroupsKept; ++k) {
      const int i = (k * threads + static_cast<int>(threadIdx.x)) * kGroup;
      store_group(parts + walker * dim + i, dw[k], dim - i, dim % 4 == 0);
      store_group(parts + (walkers + walker) * dim + i, db[k], dim - i, dim % 4 == 0);
    }
}

// The sums alone, for rows that are too long for the above: a thread has eight columns of every gridDim.y-th row.
template <class T>
static __global__ void layer_norm_sums(float* parts, const T* dy, const T* x, const float* means, const float* rstd, int64_t rows, int64_t dim,
                                       bool aligned) {
  const int64_t i = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * kGroup, walker = blockIdx.y, walkers = gridDim.y;
  float dw[kGroup] = {}, db[kGroup] = {};
  for (int64_t row = walker; row < rows; row += walkers) {
    const float mean = means[row], scale = rstd[row];
    float in[kGroup], d[kGroup];
    load_group(in, x + row * dim + i, dim - i, aligned);
    load_group(d, dy + row * dim + i, dim - i, aligned);
#pragma unroll
    for (int j = 0; j < kGroup; ++j) {
      dw[j] += d[j] * ((in[j] - mean) * scale);
      db[j] += d[j];
    }
  }
  store_group(parts + walker * dim + i, dw, dim - i, dim % 4 == 0);
  store_group(parts + (walkers + walker) * dim + i, db, dim - i, dim % 4 == 0);
}

void run(const LayerNormBackward& op, CudaStream& stream) {
  const RowShape shape(LayerNormBackward::name, op.dim);
  const bool wanted = op.dw || op.db, together = wanted && shape.threads <= kThreadsWithSums;
  const unsigned blocks = std::min(shape.blocks(op.rows), blocks_for(op.rows * shape.threads, shape.threads * shape.rows, stream));
  const int64_t walkers = together ? static_cast<int64_t>(blocks) * shape.rows : std::min<int64_t>(op.rows, 128);
  const bool aligned = op.dim * size_of(op.x.dtype) % 16 == 0 && is_aligned(op.dx.data) && is_aligned(op.dy.data) && is_aligned(op.x.data) &&
                       is_aligned(op.w.data);
  std::shared_ptr<Storage> scratch;
  if (wanted) scratch = stream.scratch(static_cast<size_t>(2 * walkers * op.dim) * sizeof(float));
  auto* parts = scratch ? static_cast<float*>(scratch->data()) : nullptr;
  with_floating(op.x.dtype, [&](auto t) {
    using T = decltype(t);
    launch(together ? layer_norm_backward<T, true> : layer_norm_backward<T, false>, blocks, shape.block(), 0, stream, op.dx.as<T>(), parts,
           op.dy.as<T>(), op.x.as<T>(), op.w.as<T>(), op.mean.as<float>(), op.rstd.as<float>(), op.rows, op.dim, aligned);
    if (!wanted || together) return;
    constexpr int kThreads = 128;
    const dim3 grid(static_cast<unsigned>(ceil_div(op.dim, kThreads * kGroup)), static_cast<unsigned>(walkers));
    launch(layer_norm_sums<T>, grid, kThreads, 0, stream, parts, op.dy.as<T>(), op.x.as<T>(), op.mean.as<float>(), op.rstd.as<float>(), op.rows,
           op.dim, aligned);
  });
  if (op.dw) write_column_sums(op.dw, parts, walkers, op.dim, op.accumulate_w, stream);
  if (op.db) write_column_sums(op.db, parts + walkers * op.dim, walkers, op.dim, op.accumulate_b, stream);
}

}  // namespace rz::cuda
