// Routing of a mixture of experts: a thread does a row's softmax and selection; a block groups the pairs of one expert, in order
// and without atomics, by going over all of them (experts · pairs reads of 4 bytes from the second-level cache). And the loss that
// balances the experts.
#include <algorithm>

#include "cuda/grid.h"
#include "cuda/launch.h"
#include "cuda/reduce.h"
#include "cuda/vec.h"
#include "ops/moe.h"

namespace rz::cuda {

struct Candidate {
  float probability;
  int32_t expert;
};

struct IsBetter {
  constexpr bool operator()(const Candidate& a, const Candidate& b) const {
    return (a.probability != a.probability && b.probability == b.probability) || a.probability > b.probability;
  }
};

// Equal probabilities fall as on the CPU, since these are the same functions (constexpr, so that device code may call them).
static __device__ void select_top(Candidate* all, int64_t count, int64_t k) {
  if (k * 64 <= count) return std::partial_sort(all, all + k, all + count, IsBetter{});
  std::nth_element(all, all + k - 1, all + count, IsBetter{});
  std::sort(all, all + k - 1, IsBetter{});
}

static __device__ void softmax(Candidate* x, int n) {
  float top = x[0].probability, sum = 0;
  for (int i = 1; i < n; ++i) top = top < x[i].probability ? x[i].probability : top;
  for (int i = 0; i < n; ++i) sum += x[i].probability = expf(x[i].probability - top);
  for (int i = 0; i < n; ++i) x[i] = {x[i].probability / sum, i};
}

template <class T>
static __global__ void route_rows(float* weights, int32_t* chosen, float* probs, const T* logits, int64_t rows, int experts, int top_k) {
  auto* candidates = dynamic_shared<Candidate>();
  const int pitch = experts | 1;  // an odd number of 8-byte words: threads in step are in different banks
  const int64_t first = static_cast<int64_t>(blockIdx.x) * blockDim.x, row = first + threadIdx.x;
  const int threads = static_cast<int>(blockDim.x), count = static_cast<int>(rows - first < threads ? rows - first : threads) * experts;
  Candidate* own = candidates + threadIdx.x * pitch;
  for (int i = static_cast<int>(threadIdx.x); i < count; i += threads)
    candidates[i / experts * pitch + i % experts].probability = widen(logits[first * experts + i]);
  __syncthreads();
  if (row < rows) softmax(own, experts);
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < count; i += threads)
    probs[first * experts + i] = candidates[i / experts * pitch + i % experts].probability;
  __syncthreads();
  if (row >= rows) return;
  select_top(own, experts, top_k);
  float sum = 0;
  for (int k = 0; k < top_k; ++k) sum += own[k].probability;
  for (int k = 0; k < top_k; ++k) {
    weights[row * top_k + k] = own[k].probability / sum;
    chosen[row * top_k + k] = own[k].expert;
  }
}

constexpr int kThreads = 512, kWarps = kThreads / kWarp;

// The sum of the values of all threads before this one; `total`: of all.
static __device__ int block_scan(int value, int& total) {
  RZ_SHARED(int, sums, kWarps);
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  int upto = value;
#pragma unroll
  for (int by = 1; by < kWarp; by *= 2) {
    const int other = __shfl_up_sync(kFullMask, upto, by);
    if (lane >= by) upto += other;
  }
  __syncthreads();  // the sums of an earlier call have been read
  if (lane == kWarp - 1) sums[warp] = upto;
  __syncthreads();
  int before = upto - value;
  total = 0;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) {
    if (w < warp) before += sums[w];
    total += sums[w];
  }
  return before;
}

// Block e does expert e.
static __global__ void group_by_expert(int32_t* order, int32_t* offsets, const int32_t* chosen, int64_t pairs) {
  constexpr int kEach = 8;
  const int expert = static_cast<int>(blockIdx.x), thread = static_cast<int>(threadIdx.x);
  int before = 0;  // pairs of the experts before this one
  for (int64_t p = thread; p < pairs; p += kThreads) before += chosen[p] < expert;
  before = block_sum(before, kThreads);
  if (thread == 0) offsets[expert] = before;
  if (thread == 0 && blockIdx.x == gridDim.x - 1) offsets[expert + 1] = static_cast<int32_t>(pairs);
  for (int64_t tile = 0; tile < pairs; tile += kThreads * kEach) {
    const int64_t first = tile + thread * kEach;
    int count = 0, total;
#pragma unroll
    for (int j = 0; j < kEach; ++j) count += first + j < pairs && chosen[first + j] == expert;
    int at = before + block_scan(count, total);
    if (count > 0)
      for (int64_t p = first; p < first + kEach && p < pairs; ++p)
        if (chosen[p] == expert) order[at++] = static_cast<int32_t>(p);
    before += total;
  }
}

// Block e: how many of the first `pairs` go to expert e, and the sum of its probabilities over `rows`.
static __global__ void measure_balance(float* balance, const int32_t* chosen, const float* probs, int64_t rows, int64_t pairs) {
  const int64_t expert = blockIdx.x, experts = gridDim.x;
  int count = 0;
  double sum = 0;
  for (int64_t p = threadIdx.x; p < pairs; p += kThreads) count += chosen[p] == expert;
  for (int64_t r = threadIdx.x; r < rows; r += kThreads) sum += static_cast<double>(probs[r * experts + expert]);
  count = block_sum(count, kThreads);
  sum = block_sum(sum, kThreads);
  if (threadIdx.x != 0) return;
  balance[expert] = static_cast<float>(count);
  balance[experts + expert] = static_cast<float>(sum);
}

void run(const RoutingForward& op, CudaStream& stream) {
  const auto experts = static_cast<unsigned>(op.experts);
  constexpr int64_t kSharedBytes = 48 << 10;
  const int64_t row_bytes = (op.experts | 1) * static_cast<int64_t>(sizeof(Candidate));
  int64_t rows = kWarp;  // of a block
  while (rows > 1 && rows * row_bytes > kSharedBytes) rows /= 2;
  if (row_bytes > kSharedBytes)
    fail("ERR_SHAPE", "[", RoutingForward::name, "] on device cuda there are at most ", kSharedBytes / static_cast<int64_t>(sizeof(Candidate)) - 1,
         " experts but ", op.experts, " are wanted");
  with_floating(op.logits.dtype, [&](auto t) {
    using T = decltype(t);
    launch(route_rows<T>, static_cast<unsigned>(ceil_div(op.rows, rows)), static_cast<unsigned>(rows), static_cast<size_t>(rows * row_bytes), stream,
           op.weights.as<float>(), op.chosen.as<int32_t>(), op.probs.as<float>(), op.logits.as<T>(), op.rows, op.experts, op.top_k);
  });
  launch(group_by_expert, experts, kThreads, 0, stream, op.order.as<int32_t>(), op.offsets.as<int32_t>(), op.chosen.as<int32_t>(),
         op.rows * op.top_k);
  if (op.balance)
    launch(measure_balance, experts, kThreads, 0, stream, op.balance.as<float>(), op.chosen.as<int32_t>(), op.probs.as<float>(), op.balance_rows,
           op.balance_rows * op.top_k);
}

// A warp for each row.
template <class T>
static __global__ void routing_backward(T* d_logits, const float* d_weights, const float* weights, const int32_t* chosen, const float* probs,
                                        const float* d_probs, int64_t rows, int experts, int top_k, int64_t balance_rows, float d_probs_scale) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  if (row >= rows) return;
  const int lane = static_cast<int>(threadIdx.x);
  const float *p = probs + row * experts, *w = weights + row * top_k, *dw = d_weights + row * top_k;
  const int32_t* c = chosen + row * top_k;
  float sum = 0, along = 0;
  for (int k = 0; k < top_k; ++k) {
    sum += p[c[k]];
    along += dw[k] * w[k];
  }
  auto d_of = [&](int e) {
    float d = d_probs && row < balance_rows ? d_probs_scale * d_probs[e] : 0.0f;
    for (int k = 0; k < top_k; ++k)
      if (c[k] == e) d += (dw[k] - along) / sum;
    return d;
  };
  float mean = 0;
  for (int e = lane; e < experts; e += kWarp) mean += p[e] * d_of(e);
  mean = warp_sum(mean);
  for (int e = lane; e < experts; e += kWarp) d_logits[row * experts + e] = narrow<T>(p[e] * (d_of(e) - mean));
}

void run(const RoutingBackward& op, CudaStream& stream) {
  constexpr int kRows = 8;  // of a block
  with_floating(op.d_logits.dtype, [&](auto t) {
    using T = decltype(t);
    launch(routing_backward<T>, static_cast<unsigned>(ceil_div(op.rows, kRows)), dim3(kWarp, kRows), 0, stream, op.d_logits.as<T>(),
           op.d_weights.as<float>(), op.weights.as<float>(), op.chosen.as<int32_t>(), op.probs.as<float>(), op.d_probs.as<float>(), op.rows,
           op.experts, op.top_k, op.balance_rows, op.d_probs_scale);
  });
}

// The sum of row `row` (0: pairs, 1: probabilities) of expert e over the layers.
static __device__ double over_layers(const float* balance, int64_t layers, int64_t experts, int row, int64_t e) {
  double sum = 0;
  for (int64_t l = 0; l < layers; ++l) sum += static_cast<double>(balance[(2 * l + row) * experts + e]);
  return sum;
}

// factor: coefficient · experts / n²
static __global__ void balancing_loss_forward(float* total, const float* loss, const float* balance, int64_t layers, int64_t experts, double factor) {
  double sum = 0;
  for (int64_t e = threadIdx.x; e < experts; e += kWarp)
    sum += over_layers(balance, layers, experts, 0, e) * over_layers(balance, layers, experts, 1, e);
  sum = warp_sum(sum);
  if (threadIdx.x == 0) *total = static_cast<float>(static_cast<double>(*loss) + factor * sum);
}

static __global__ void balancing_loss_backward(float* d_probs, const float* d_total, const float* balance, int64_t layers, int64_t experts,
                                               double factor) {
  for (int64_t e = threadIdx.x; e < experts; e += kWarp)
    d_probs[e] = static_cast<float>(static_cast<double>(*d_total) * factor * over_layers(balance, layers, experts, 0, e));
}

template <class Op>
static double balancing_factor(const Op& op) {
  const double n = static_cast<double>(op.layers * op.rows);
  return op.coefficient * static_cast<double>(op.experts) / n / n;
}

void run(const BalancingLossForward& op, CudaStream& stream) {
  launch(balancing_loss_forward, 1, kWarp, 0, stream, op.total.as<float>(), op.loss.as<float>(), op.balance.as<float>(), op.layers, op.experts,
         balancing_factor(op));
}

void run(const BalancingLossBackward& op, CudaStream& stream) {
  launch(balancing_loss_backward, 1, kWarp, 0, stream, op.d_probs.as<float>(), op.d_total.as<float>(), op.balance.as<float>(), op.layers, op.experts,
         balancing_factor(op));
}

}  // namespace rz::cuda
