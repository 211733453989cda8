// RMSNorm. A row belongs to a warp if it is short, else to a block, which keeps it in registers: x is read once. The gradient of
// the weight is summed over the rows of each block, then over blocks in order.
#include "cuda/column_sums.h"
#include "cuda/grid.h"
#include "cuda/launch.h"
#include "cuda/reduce.h"
#include "cuda/row_shape.h"
#include "cuda/vec.h"
#include "ops/rms_norm.h"

namespace rz::cuda {

template <class T>
static __global__ void rms_norm_forward(T* y, float* rstd, const T* x, const T* w, int64_t rows, int64_t dim, float eps, bool aligned) {
  const int threads = static_cast<int>(blockDim.x);
  const int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  if (row >= rows) return;  // whole warps only
  float kept[kGroupsKept][kGroup], sum = 0;
#pragma unroll
  for (int k = 0; k < kGroupsKept; ++k) {
    const int64_t i = (static_cast<int64_t>(k) * threads + threadIdx.x) * kGroup;
    load_group(kept[k], x + row * dim + i, dim - i, aligned);
#pragma unroll
    for (int j = 0; j < kGroup; ++j) sum += kept[k][j] * kept[k][j];
  }
  const float scale = 1.0f / sqrtf(block_sum(sum, threads) / static_cast<float>(dim) + eps);
  if (threadIdx.x == 0) rstd[row] = scale;
#pragma unroll
  for (int k = 0; k < kGroupsKept; ++k) {
    const int64_t i = (static_cast<int64_t>(k) * threads + threadIdx.x) * kGroup;
    float weight[kGroup];
    load_group(weight, w + i, dim - i, aligned);
#pragma unroll
    for (int j = 0; j < kGroup; ++j) kept[k][j] = rounded<T>(kept[k][j] * scale) * weight[j];
    store_group(y + row * dim + i, kept[k], dim - i, aligned);
  }
}

void run(const RmsNormForward& op, CudaStream& stream) {
  if (op.rows == 0) return;
  const RowShape shape(RmsNormForward::name, op.dim);
  const bool aligned = op.dim * size_of(op.x.dtype) % 16 == 0 && is_aligned(op.y.data) && is_aligned(op.x.data) && is_aligned(op.w.data);
  with_floating(op.x.dtype, [&](auto t) {
    using T = decltype(t);
    launch(rms_norm_forward<T>, shape.blocks(op.rows), shape.block(), 0, stream, op.y.as<T>(), op.rstd.as<float>(), op.x.as<T>(),
           op.w.as<T>(), op.rows, op.dim, op.eps, aligned);
  });
}

constexpr int kThreadsWithSums = 512;  // at most: with the sums a thread needs more than 64 registers

// dw_parts: (walkers, dim), one row for each of the walkers that go over the rows. Without kSums they are not made.
template <class T, bool kSums>
static __global__ void __launch_bounds__(kSums ? kThreadsWithSums : 1024)
    rms_norm_backward(T* dx, float* dw_parts, const T* dy, const T* x, const T* w, const float* rstd, const T* earlier, int64_t rows, int dim,
                      bool aligned) {
  const int threads = static_cast<int>(blockDim.x);
  const int64_t walker = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  const int64_t walkers = static_cast<int64_t>(gridDim.x) * blockDim.y;
  float dw[kSums ? kGroupsKept : 1][kGroup] = {};
  for (int64_t row = walker; row < rows; row += walkers) {
    const float scale = rstd[row];
    float in[kGroupsKept][kGroup], along[kGroupsKept][kGroup], dot = 0;
#pragma unroll
    for (int k = 0; k < kGroupsKept; ++k) {
      const int i = (k * threads + static_cast<int>(threadIdx.x)) * kGroup;
      float weight[kGroup];
      load_group(in[k], x + row * dim + i, dim - i, aligned);
      load_group(along[k], dy + row * dim + i, dim - i, aligned);
      load_group(weight, w + i, dim - i, aligned);
#pragma unroll
      for (int j = 0; j < kGroup; ++j) {
        if constexpr (kSums) dw[k][j] += along[k][j] * rounded<T>(in[k][j] * scale);
        along[k][j] *= weight[j];
        dot += along[k][j] * in[k][j];
      }
    }
    const float by = block_sum(dot, threads) * scale * scale * scale / static_cast<float>(dim);
#pragma unroll
    for (int k = 0; k < kGroupsKept; ++k) {
      const int i = (k * threads + static_cast<int>(threadIdx.x)) * kGroup;
#pragma unroll
      for (int j = 0; j < kGroup; ++j) along[k][j] = along[k][j] * scale - in[k][j] * by;
      if (earlier) {
        load_group(in[k], earlier + row * dim + i, dim - i, aligned);
#pragma unroll
        for (int j = 0; j < kGroup; ++j) along[k][j] += in[k][j];
      }
      store_group(dx + row * dim + i, along[k], dim - i, aligned);
    }
    if constexpr (!kSums) return;  // the grid has all rows
  }
  if constexpr (kSums)
#pragma unroll
    for (int k = 0; k < kGroupsKept; ++k) {
      const int i = (k * threads + static_cast<int>(threadIdx.x)) * kGroup;
      store_group(dw_parts + walker * dim + i, dw[k], dim - i, dim % 4 == 0);
    }
}

// The sums alone, for rows that are too long for the above: a thread has eight columns of every gridDim.y-th row.
template <class T>
static __global__ void rms_norm_sums(float* dw_parts, const T* dy, const T* x, const float* rstd, int64_t rows, int64_t dim, bool aligned) {
  const int64_t i = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * kGroup;
  float dw[kGroup] = {};
  for (int64_t row = blockIdx.y; row < rows; row += gridDim.y) {
    const float scale = rstd[row];
    float in[kGroup], d[kGroup];
    load_group(in, x + row * dim + i, dim - i, aligned);
    load_group(d, dy + row * dim + i, dim - i, aligned);
#pragma unroll
    for (int j = 0; j < kGroup; ++j) dw[j] += d[j] * rounded<T>(in[j] * scale);
  }
  store_group(dw_parts + blockIdx.y * dim + i, dw, dim - i, dim % 4 == 0);
}

void run(const RmsNormBackward& op, CudaStream& stream) {
  const RowShape shape(RmsNormBackward::name, op.dim);
  const bool together = op.dw && shape.threads <= kThreadsWithSums;
  const unsigned all = shape.blocks(op.rows);
  const unsigned blocks = together ? std::min(all, blocks_for(op.rows * shape.threads, shape.threads * shape.rows, stream)) : all;
  const int64_t walkers = together ? static_cast<int64_t>(blocks) * shape.rows : std::min<int64_t>(op.rows, 128);
  const bool aligned = op.dim * size_of(op.x.dtype) % 16 == 0 && is_aligned(op.dx.data) && is_aligned(op.dy.data) && is_aligned(op.x.data) &&
                       is_aligned(op.w.data) && is_aligned(op.earlier.data);
  std::shared_ptr<Storage> scratch;
  if (op.dw) scratch = stream.scratch(static_cast<size_t>(walkers * op.dim) * sizeof(float));
  auto* parts = scratch ? static_cast<float*>(scratch->data()) : nullptr;
  with_floating(op.x.dtype, [&](auto t) {
    using T = decltype(t);
    launch(together ? rms_norm_backward<T, true> : rms_norm_backward<T, false>, blocks, shape.block(), 0, stream, op.dx.as<T>(), parts,
           op.dy.as<T>(), op.x.as<T>(), op.w.as<T>(), op.rstd.as<float>(), op.earlier.as<T>(), op.rows, op.dim, aligned);
    if (!op.dw || together) return;
    constexpr int kThreads = 128;
    const dim3 grid(static_cast<unsigned>(ceil_div(op.dim, kThreads * kGroup)), static_cast<unsigned>(walkers));
    launch(rms_norm_sums<T>, grid, kThreads, 0, stream, parts, op.dy.as<T>(), op.x.as<T>(), op.rstd.as<float>(), op.rows, op.dim, aligned);
  });
  if (op.dw) write_column_sums(op.dw, parts, walkers, op.dim, op.accumulate, stream);
}

}  // namespace rz::cuda
