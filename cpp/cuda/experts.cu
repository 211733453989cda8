// The experts of a mixture. How many rows an expert gets is known on the device only, so each step is one launch for the pairs of
// all experts, in their group order; a row then adds up the results of its pairs in the order of experts. Beside what is kept,
// that takes top_k · (inner + 2 · dim) values a row. Backward makes the activation again.
#include "cuda/activation_math.h"
#include "cuda/grid.h"
#include "cuda/grouped_matmul.h"
#include "cuda/launch.h"
#include "cuda/reduce.h"
#include "cuda/vec.h"
#include "ops/activation.h"
#include "ops/moe.h"

namespace rz::cuda {

constexpr int kThreads = 128;

// position[order[i]] = i
static __global__ void invert_order(int32_t* position, const int32_t* order, int64_t pairs) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < pairs) position[order[i]] = static_cast<int32_t>(i);
}

// Block r: y[r] = Σ of the rows of its pairs, in the order of their positions, times their weights where given.
template <class T>
static __global__ void add_pairs(T* y, const float* rows, const int32_t* position, const float* weights, int64_t dim, int top_k, bool y_aligned) {
  auto* sorted = dynamic_shared<int32_t>();          // (top_k) positions, rising
  auto* factor = reinterpret_cast<float*>(sorted + top_k);  // (top_k)
  const int64_t row = blockIdx.x, first = row * top_k;
  for (int s = static_cast<int>(threadIdx.x); s < top_k; s += kThreads) {
    int rank = 0;
    for (int other = 0; other < top_k; ++other) rank += position[first + other] < position[first + s];
    sorted[rank] = position[first + s];
    factor[rank] = weights ? weights[first + s] : 1.0f;
  }
  __syncthreads();
  for (int64_t c = static_cast<int64_t>(threadIdx.x) * kGroup; c < dim; c += kThreads * kGroup) {
    float sum[kGroup] = {};
    for (int s = 0; s < top_k; ++s) {
      float x[kGroup];
      load_group(x, rows + sorted[s] * dim + c, dim - c, dim % 4 == 0);
#pragma unroll
      for (int j = 0; j < kGroup; ++j) sum[j] += x[j] * factor[s];
    }
    store_group(y + row * dim + c, sum, dim - c, y_aligned);
  }
}

// Memory that steps of one op share.
template <class T>
static T* take(std::vector<std::shared_ptr<Storage>>& held, int64_t numel, CudaStream& stream) {
  held.push_back(stream.scratch(static_cast<size_t>(std::max<int64_t>(1, numel)) * sizeof(T)));
  return static_cast<T*>(held.back()->data());
}

static View take(std::vector<std::shared_ptr<Storage>>& held, DType dtype, int64_t numel, CudaStream& stream) {
  return {take<char>(held, numel * size_of(dtype), stream), dtype, numel};
}

static void combine(const View& y, const View& rows, const View& order, const float* weights, int64_t n, int64_t dim, int64_t top_k,
                    std::vector<std::shared_ptr<Storage>>& held, CudaStream& stream) {
  const int64_t pairs = n * top_k;
  auto* position = take<int32_t>(held, pairs, stream);
  launch(invert_order, static_cast<unsigned>(ceil_div(pairs, kThreads)), kThreads, 0, stream, position, order.as<int32_t>(), pairs);
  with_floating(y.dtype, [&](auto t) {
    using T = decltype(t);
    launch(add_pairs<T>, static_cast<unsigned>(n), kThreads, static_cast<size_t>(top_k) * 8, stream, y.as<T>(), rows.as<float>(), position, weights,
           dim, top_k, is_aligned(y.data) && dim * size_of(y.dtype) % 16 == 0);
  });
}

void run(const ExpertsForward& op, CudaStream& stream) {
  const char* name = ExpertsForward::name;
  const DType type = op.x.dtype;
  const int64_t pairs = op.rows * op.top_k, dim = op.dim, inner = op.inner;
  const Groups groups{op.offsets.as<int32_t>(), op.offsets.numel - 1, pairs};
  std::vector<std::shared_ptr<Storage>> held;
  View gate = op.gate, up = op.up;
  if (!gate) gate = take(held, type, pairs * inner, stream), up = take(held, type, pairs * inner, stream);
  const View act = take(held, type, pairs * inner, stream), out = take(held, DType::Float32, pairs * dim, stream);
  const PairRows x{op.x, op.order.as<int32_t>(), op.top_k};
  grouped_matmul(name, groups, inner, dim, x, op.w1, true, gate, false, stream);
  grouped_matmul(name, groups, inner, dim, x, op.w3, true, up, false, stream);
  run(SwigluForward{act, gate, up}, stream);
  grouped_matmul(name, groups, dim, inner, {act}, op.w2, true, out, false, stream);
  combine(op.y, out, op.order, op.weights.as<float>(), op.rows, dim, op.top_k, held, stream);
}

// Block i does the pair at position i: gradients of gate and up take their place, `act` gets the activation times the pair's
// weight, and the weight's gradient is the sum of d_act times the activation.
template <class T>
static __global__ void weighted_swiglu_backward(T* gate, T* up, T* act, float* d_weights, const float* d_act, const float* weights,
                                                const int32_t* order, int64_t inner, bool aligned) {
  const int64_t start = static_cast<int64_t>(blockIdx.x) * inner, pair = order[blockIdx.x];
  const float weight = weights[pair];
  float dot = 0;
  for (int64_t c = static_cast<int64_t>(threadIdx.x) * kGroup; c < inner; c += kThreads * kGroup) {
    float g[kGroup], u[kGroup], d[kGroup], a[kGroup];
    load_group(g, gate + start + c, inner - c, aligned);
    load_group(u, up + start + c, inner - c, aligned);
    load_group(d, d_act + start + c, inner - c, inner % 4 == 0);
#pragma unroll
    for (int j = 0; j < kGroup; ++j) {
      const Silu silu(g[j]);
      const float value = silu.value * u[j], along = d[j] * weight;
      dot += d[j] * value;
      a[j] = value * weight;
      g[j] = along * u[j] * silu.slope;
      u[j] = along * silu.value;
    }
    store_group(gate + start + c, g, inner - c, aligned);
    store_group(up + start + c, u, inner - c, aligned);
    store_group(act + start + c, a, inner - c, aligned);
  }
  dot = block_sum(dot, kThreads);
  if (threadIdx.x == 0) d_weights[pair] = dot;
}

void run(const ExpertsBackward& op, CudaStream& stream) {
  const char* name = ExpertsBackward::name;
  const DType type = op.x.dtype;
  const int64_t pairs = op.rows * op.top_k, dim = op.dim, inner = op.inner;
  const Groups groups{op.offsets.as<int32_t>(), op.offsets.numel - 1, pairs};
  const PairRows x{op.x, op.order.as<int32_t>(), op.top_k}, dy{op.dy, op.order.as<int32_t>(), op.top_k};
  std::vector<std::shared_ptr<Storage>> held;
  const View act = take(held, type, pairs * inner, stream), d_act = take(held, DType::Float32, pairs * inner, stream);
  grouped_matmul(name, groups, inner, dim, dy, op.w2, false, d_act, false, stream);
  const bool aligned = inner * size_of(type) % 16 == 0 && is_aligned(op.gate.data) && is_aligned(op.up.data) && is_aligned(act.data);
  with_floating(type, [&](auto t) {
    using T = decltype(t);
    launch(weighted_swiglu_backward<T>, static_cast<unsigned>(pairs), kThreads, 0, stream, op.gate.as<T>(), op.up.as<T>(), act.as<T>(),
           op.d_weights.as<float>(), d_act.as<float>(), op.weights.as<float>(), op.order.as<int32_t>(), inner, aligned);
  });
  if (op.dx) {
    const View out = take(held, DType::Float32, pairs * dim, stream);
    grouped_matmul(name, groups, dim, inner, {op.gate}, op.w1, false, out, false, stream);
    grouped_matmul(name, groups, dim, inner, {op.up}, op.w3, false, out, true, stream);
    combine(op.dx, out, op.order, nullptr, op.rows, dim, op.top_k, held, stream);
  }
  const auto experts = static_cast<size_t>(groups.count);
  grouped_matmul_over_rows(name, groups, inner, dim, {op.gate}, x, op.dw1, op.accumulate, 0, stream);
  grouped_matmul_over_rows(name, groups, dim, inner, dy, {act}, op.dw2, op.accumulate, experts, stream);
  grouped_matmul_over_rows(name, groups, inner, dim, {op.up}, x, op.dw3, op.accumulate, 2 * experts, stream);
}

}  // namespace rz::cuda
