// Adafactor: sums of squares by row and by column, factors, the norm of the update, and the update. Every sum is one block's, in an
// order that does not depend on timing.
#include <algorithm>
#include <cmath>

#include "cuda/grid.h"
#include "cuda/launch.h"
#include "cuda/reduce.h"
#include "cuda/vec.h"
#include "ops/adafactor.h"

namespace rz::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kColumns = 32, kLanes = 8;  // of a block of column sums: lane l sums rows l, l + 8, …
constexpr int64_t kMaxParts = 1024;

// Element i of the slice is number first + i of a block of `width` columns at (row, column) of the matrix.
struct Place {
  int64_t first, width, row, column;
};

struct Moments {
  const float *variance, *rows, *columns, *mean;
  Place place;
  float eps1;
};

template <class G>
__global__ void row_squares(float* sums, const G* grad, int64_t numel, Place at, int64_t rows, const float* grad_scale) {
  const float scale = grad_scale ? *grad_scale : 1.0f;
  const int64_t first_row = at.first / at.width;
  for (int64_t r = blockIdx.x; r < rows; r += gridDim.x) {
    const int64_t start = (first_row + r) * at.width - at.first;
    const int64_t begin = start < 0 ? 0 : start, end = start + at.width < numel ? start + at.width : numel;
    float sum = 0;
    for (int64_t i = begin + static_cast<int64_t>(threadIdx.x); i < end; i += kThreads) {
      const float g = widen(grad[i]);
      sum += g * g;
    }
    sum = block_sum(sum, kThreads);
    if (threadIdx.x == 0) sums[at.row + first_row + r] += sum * scale * scale;
  }
}

template <class G>
__global__ void column_squares(float* sums, const G* grad, int64_t numel, Place at, int64_t rows, const float* grad_scale) {
  RZ_SHARED(float, partial, kColumns * kLanes);
  const float scale = grad_scale ? *grad_scale : 1.0f;
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kColumns + threadIdx.x, first_row = at.first / at.width;
  float sum = 0;
  if (column < at.width)
    for (int64_t r = threadIdx.y; r < rows; r += kLanes) {
      const int64_t i = (first_row + r) * at.width - at.first + column;
      const float g = i >= 0 && i < numel ? widen(grad[i]) : 0.0f;
      sum += g * g;
    }
  partial[threadIdx.y * kColumns + threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || column >= at.width) return;
  for (int lane = 1; lane < kLanes; ++lane) sum += partial[lane * kColumns + threadIdx.x];
  sums[at.column + column] += sum * scale * scale;
}

__global__ void factors(float* rows, float* columns, float* mean, const float* row_sums, const float* column_sums, int64_t row_count,
                        int64_t column_count, float weight) {
  double total = 0;
  for (int64_t i = threadIdx.x; i < row_count; i += kThreads) {
    const float row = rows[i] + weight * (row_sums[i] / static_cast<float>(column_count) - rows[i]);
    rows[i] = row;
    total += row;
  }
  for (int64_t i = threadIdx.x; i < column_count; i += kThreads)
    columns[i] += weight * (column_sums[i] / static_cast<float>(row_count) - columns[i]);
  total = block_sum(total, kThreads);
  if (threadIdx.x == 0) *mean = static_cast<float>(total / static_cast<double>(row_count));
}

// The update of one element before clipping.
__device__ float update_of(const Moments& of, float grad, int64_t i) {
  float variance;
  if (of.variance) {
    variance = of.variance[i];
  } else {
    const int64_t place = of.place.first + i, row = place / of.place.width;
    const float mean = *of.mean > of.eps1 ? *of.mean : of.eps1;
    variance = of.rows[of.place.row + row] * of.columns[of.place.column + place - row * of.place.width] / mean;
  }
  const float floor = of.eps1 * of.eps1;
  return grad / sqrtf(variance < floor ? floor : variance);
}

template <class G>
__global__ void mix_variance(float* variance, const G* grad, int64_t numel, const float* grad_scale, float weight) {
  const float scale = grad_scale ? *grad_scale : 1.0f;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < numel; i += stride) {
    const float g = widen(grad[i]) * scale;
    variance[i] += weight * (g * g - variance[i]);
  }
}

template <class G>
__global__ void update_squares(double* sums, const G* grad, int64_t numel, int64_t per_part, const float* grad_scale, Moments of) {
  const float scale = grad_scale ? *grad_scale : 1.0f;
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * per_part, end = begin + per_part < numel ? begin + per_part : numel;
  double sum = 0;
  for (int64_t i = begin + static_cast<int64_t>(threadIdx.x); i < end; i += kThreads) {
    const float update = update_of(of, widen(grad[i]) * scale, i);
    sum += static_cast<double>(update) * update;
  }
  sum = block_sum(sum, kThreads);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

__global__ void add_parts(float* out, const double* sums, int parts) {
  double sum = 0;
  for (int i = static_cast<int>(threadIdx.x); i < parts; i += kThreads) sum += sums[i];
  sum = block_sum(sum, kThreads);
  if (threadIdx.x == 0) *out = static_cast<float>(*out + sum);
}

struct StepScalars {
  const float *param_squares, *update_squares, *grad_scale;
  double root, rho, eps2, clip;
  float decay;
};

// C: the dtype of the copy; unused when `copy` is null.
template <class P, class G, class C>
__global__ void step(P* param, const G* grad, C* copy, int64_t numel, Moments of, StepScalars s) {
  const float scale = s.grad_scale ? *s.grad_scale : 1.0f;
  const double size = sqrt(static_cast<double>(*s.param_squares)) / s.root;
  const double update_size = sqrt(static_cast<double>(*s.update_squares)) / (s.root * s.clip);
  const auto factor = static_cast<float>((size > s.eps2 ? size : s.eps2) * s.rho / (update_size > 1.0 ? update_size : 1.0));
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < numel; i += stride) {
    const float p = widen(param[i]) * s.decay - factor * update_of(of, widen(grad[i]) * scale, i);
    param[i] = narrow<P>(p);
    if (copy) copy[i] = narrow<C>(p);
  }
}

template <class Op>
Moments moments_of(const Op& op) {
  return {op.variance.template as<float>(), op.rows.template as<float>(), op.columns.template as<float>(), op.mean.template as<float>(),
          {op.first, op.width, op.row, op.column}, static_cast<float>(op.eps1)};
}

}  // namespace

void run(const AdafactorSums& op, CudaStream& stream) {
  const int64_t n = op.grad.numel;
  if (n == 0) return;
  const int64_t rows = (op.first + n - 1) / op.width - op.first / op.width + 1;
  const Place at{op.first, op.width, op.row, op.column};
  const auto row_blocks = static_cast<unsigned>(std::min<int64_t>(rows, 1 << 16));
  with_floating(op.grad.dtype, [&](auto g) {
    using G = decltype(g);
    launch(row_squares<G>, row_blocks, kThreads, 0, stream, op.row_sums.as<float>(), op.grad.as<G>(), n, at, rows, op.grad_scale.as<float>());
    launch(column_squares<G>, static_cast<unsigned>(ceil_div(op.width, kColumns)), dim3(kColumns, kLanes), 0, stream,
           op.column_sums.as<float>(), op.grad.as<G>(), n, at, rows, op.grad_scale.as<float>());
  });
}

void run(const AdafactorFactors& op, CudaStream& stream) {
  launch(factors, 1, kThreads, 0, stream, op.rows.as<float>(), op.columns.as<float>(), op.mean.as<float>(), op.row_sums.as<float>(),
         op.column_sums.as<float>(), op.rows.numel, op.columns.numel, static_cast<float>(op.weight));
}

void run(const AdafactorNorm& op, CudaStream& stream) {
  const int64_t n = op.grad.numel;
  if (n == 0) return;
  const int64_t per_part = std::max<int64_t>(ceil_div(n, kMaxParts), kThreads), parts = ceil_div(n, per_part);
  auto scratch = stream.scratch(static_cast<size_t>(parts) * sizeof(double));
  auto* sums = static_cast<double*>(scratch->data());
  with_floating(op.grad.dtype, [&](auto g) {
    using G = decltype(g);
    if (op.variance)
      launch(mix_variance<G>, blocks_for(n, kThreads, stream), kThreads, 0, stream, op.variance.as<float>(), op.grad.as<G>(), n,
             op.grad_scale.as<float>(), static_cast<float>(op.weight));
    launch(update_squares<G>, static_cast<unsigned>(parts), kThreads, 0, stream, sums, op.grad.as<G>(), n, per_part, op.grad_scale.as<float>(),
           moments_of(op));
  });
  launch(add_parts, 1, kThreads, 0, stream, op.out.as<float>(), sums, static_cast<int>(parts));
}

void run(const AdafactorStep& op, CudaStream& stream) {
  const int64_t n = op.param.numel;
  const StepScalars scalars{op.param_squares.as<float>(), op.update_squares.as<float>(), op.grad_scale.as<float>(),
                            std::sqrt(static_cast<double>(op.numel)), op.rho, op.eps2, op.clip, static_cast<float>(1.0 - op.lr * op.weight_decay)};
  const unsigned grid = blocks_for(n, kThreads, stream);
  with_floating(op.param.dtype, [&](auto p) {
    with_floating(op.grad.dtype, [&](auto g) {
      using P = decltype(p);
      using G = decltype(g);
      if constexpr (std::is_same_v<P, float>) {
        with_floating(op.copy.dtype, [&](auto c) {
          using C = decltype(c);
          launch(step<P, G, C>, grid, kThreads, 0, stream, op.param.as<P>(), op.grad.as<G>(), op.copy.as<C>(), n, moments_of(op), scalars);
        });
      } else {
        launch(step<P, G, float>, grid, kThreads, 0, stream, op.param.as<P>(), op.grad.as<G>(), nullptr, n, moments_of(op), scalars);
      }
    });
  });
}

}  // namespace rz::cuda
