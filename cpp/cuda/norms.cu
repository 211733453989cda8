// Sum of squares, in float64: blocks sum fixed parts of x, one block adds their sums up in order. And the clipping factor.
#include "cuda/grid.h"
#include "cuda/launch.h"
#include "cuda/reduce.h"
#include "cuda/vec.h"
#include "ops/elementwise.h"

namespace rz::cuda {

constexpr int kThreads = 256;
constexpr int64_t kMaxParts = 1024;

// Block b sums groups b · per_part … of x.
template <class T>
static __global__ void square_parts(double* sums, const T* x, int64_t numel, int64_t per_part, bool aligned) {
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * per_part * kGroup;
  const int64_t end = begin + per_part * kGroup < numel ? begin + per_part * kGroup : numel;
  double sum = 0;
  for (int64_t i = begin + static_cast<int64_t>(threadIdx.x) * kGroup; i < end; i += static_cast<int64_t>(blockDim.x) * kGroup) {
    float values[kGroup];
    load_group(values, x + i, end - i, aligned);
    float part = 0;
#pragma unroll
    for (int j = 0; j < kGroup; ++j) part += values[j] * values[j];
    sum += part;
  }
  sum = block_sum(sum, kThreads);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

static __global__ void add_parts(float* out, const double* sums, int parts, bool accumulate) {
  double sum = 0;
  for (int i = static_cast<int>(threadIdx.x); i < parts; i += kThreads) sum += sums[i];
  sum = block_sum(sum, kThreads);
  if (threadIdx.x == 0) *out = static_cast<float>(accumulate ? *out + sum : sum);
}

void run(const SumSquares& op, CudaStream& stream) {
  const int64_t groups = ceil_div(op.x.numel, kGroup);
  const int64_t per_part = std::max<int64_t>(ceil_div(groups, kMaxParts), kThreads);
  const int64_t parts = ceil_div(groups, per_part);
  auto scratch = stream.scratch(static_cast<size_t>(parts) * sizeof(double));
  auto* sums = static_cast<double*>(scratch->data());
  with_floating(op.x.dtype, [&](auto t) {
    using T = decltype(t);
    launch(square_parts<T>, static_cast<unsigned>(parts), kThreads, 0, stream, sums, op.x.as<T>(), op.x.numel, per_part, is_aligned(op.x.data));
  });
  launch(add_parts, 1, kThreads, 0, stream, op.out.as<float>(), sums, static_cast<int>(parts), op.accumulate);
}

static __global__ void clip_factor(float* norm, float* factor, const float* sum, float max_norm) {
  const float root = sqrtf(*sum), by = max_norm / (root + 1e-6f);
  *norm = root;
  *factor = by > 1.0f ? 1.0f : by;  // a NaN norm gives a NaN factor, as in PyTorch
}

void run(const ClipFactor& op, CudaStream& stream) {
  launch(clip_factor, 1, 1, 0, stream, op.norm.as<float>(), op.factor.as<float>(), op.sum.as<float>(), op.max_norm);
}

}  // namespace rz::cuda
