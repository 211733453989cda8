// SwiGLU and GELU with their gradients, element by element.
#include "ops/activation.h"

#include "cuda/activation_math.h"
#include "cuda/over_groups.h"

namespace rz::cuda {

template <class... Pointers>
static bool all_aligned(const Pointers*... pointers) {
  return (is_aligned(pointers) && ...);
}

template <class T>
struct SwigluForwardMap {
  T* y;
  const T *gate, *up;
  bool aligned;
  __device__ void operator()(int64_t first, int64_t count) const {
    float g[kGroup], u[kGroup];
    load_group(g, gate + first, count, aligned);
    load_group(u, up + first, count, aligned);
#pragma unroll
    for (int i = 0; i < kGroup; ++i) g[i] = g[i] * sigmoid(g[i]) * u[i];
    store_group(y + first, g, count, aligned);
  }
};

void run(const SwigluForward& op, CudaStream& stream) {
  with_floating(op.y.dtype, [&](auto t) {
    using T = decltype(t);
    over_groups(op.y.numel, stream,
                SwigluForwardMap<T>{op.y.as<T>(), op.gate.as<T>(), op.up.as<T>(), all_aligned(op.y.data, op.gate.data, op.up.data)});
  });
}

template <class T>
struct SwigluBackwardMap {
  T *d_gate, *d_up;
  const T *dy, *gate, *up;
  bool aligned;
  __device__ void operator()(int64_t first, int64_t count) const {
    float d[kGroup], g[kGroup], u[kGroup];
    load_group(d, dy + first, count, aligned);
    load_group(g, gate + first, count, aligned);
    load_group(u, up + first, count, aligned);
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
      const Silu silu(g[i]);
      g[i] = d[i] * u[i] * silu.slope;
      u[i] = d[i] * silu.value;
    }
    store_group(d_gate + first, g, count, aligned);
    store_group(d_up + first, u, count, aligned);
  }
};

void run(const SwigluBackward& op, CudaStream& stream) {
  const bool aligned = all_aligned(op.d_gate.data, op.d_up.data, op.dy.data, op.gate.data, op.up.data);
  with_floating(op.dy.dtype, [&](auto t) {
    using T = decltype(t);
    over_groups(op.dy.numel, stream,
                SwigluBackwardMap<T>{op.d_gate.as<T>(), op.d_up.as<T>(), op.dy.as<T>(), op.gate.as<T>(), op.up.as<T>(), aligned});
  });
}

// Gate and up of a row are `inner` elements apart in `gate_up`, so each row begins where two of them end.
template <class T>
struct PackedSwigluForwardMap {
  SwigluForwardMap<T> at;  // of the first row
  int64_t inner;
  __device__ void operator()(int64_t row, int64_t first, int64_t count) const {
    const int64_t packed = 2 * row * inner;
    SwigluForwardMap<T>{at.y + row * inner, at.gate + packed, at.up + packed, at.aligned}(first, count);
  }
};

void run(const PackedSwigluForward& op, CudaStream& stream) {
  const bool aligned = op.inner * size_of(op.y.dtype) % 16 == 0 && all_aligned(op.y.data, op.gate_up.data);
  with_floating(op.y.dtype, [&](auto t) {
    using T = decltype(t);
    const T* gate = op.gate_up.as<T>();
    over_row_groups(op.rows, op.inner, stream, PackedSwigluForwardMap<T>{{op.y.as<T>(), gate, gate + op.inner, aligned}, op.inner});
  });
}

template <class T>
struct PackedSwigluBackwardMap {
  SwigluBackwardMap<T> at;  // of the first row
  int64_t inner;
  __device__ void operator()(int64_t row, int64_t first, int64_t count) const {
    const int64_t packed = 2 * row * inner;
    SwigluBackwardMap<T>{at.d_gate + packed, at.d_up + packed, at.dy + row * inner, at.gate + packed, at.up + packed, at.aligned}(first, count);
  }
};

void run(const PackedSwigluBackward& op, CudaStream& stream) {
  const bool aligned = op.inner * size_of(op.dy.dtype) % 16 == 0 && all_aligned(op.d_gate_up.data, op.dy.data, op.gate_up.data);
  with_floating(op.dy.dtype, [&](auto t) {
    using T = decltype(t);
    T* d_gate = op.d_gate_up.as<T>();
    const T* gate = op.gate_up.as<T>();
    over_row_groups(op.rows, op.inner, stream,
                    PackedSwigluBackwardMap<T>{{d_gate, d_gate + op.inner, op.dy.as<T>(), gate, gate + op.inner, aligned}, op.inner});
  });
}

template <class T, class Function>
struct GeluForwardMap {
  T* y;
  const T* x;
  bool aligned;
  __device__ void operator()(int64_t first, int64_t count) const {
    float values[kGroup];
    load_group(values, x + first, count, aligned);
#pragma unroll
    for (int i = 0; i < kGroup; ++i) values[i] = Function::value(values[i]);
    store_group(y + first, values, count, aligned);
  }
};

template <class T, class Function>
struct GeluBackwardMap {
  T* dx;
  const T *dy, *x;
  bool aligned;
  __device__ void operator()(int64_t first, int64_t count) const {
    float d[kGroup], values[kGroup];
    load_group(d, dy + first, count, aligned);
    load_group(values, x + first, count, aligned);
#pragma unroll
    for (int i = 0; i < kGroup; ++i) d[i] *= Function::slope(values[i]);
    store_group(dx + first, d, count, aligned);
  }
};

// Calls `visit` with a value of the dtype and one of the function.
template <class Visit>
static void with_gelu(DType dtype, bool tanh, Visit visit) {
  with_floating(dtype, [&](auto t) { tanh ? visit(t, TanhGelu{}) : visit(t, Gelu{}); });
}

void run(const GeluForward& op, CudaStream& stream) {
  with_gelu(op.x.dtype, op.tanh, [&](auto t, auto function) {
    using T = decltype(t);
    over_groups(op.x.numel, stream, GeluForwardMap<T, decltype(function)>{op.y.as<T>(), op.x.as<T>(), all_aligned(op.y.data, op.x.data)});
  });
}

void run(const GeluBackward& op, CudaStream& stream) {
  with_gelu(op.x.dtype, op.tanh, [&](auto t, auto function) {
    using T = decltype(t);
    over_groups(op.x.numel, stream,
                GeluBackwardMap<T, decltype(function)>{op.dx.as<T>(), op.dy.as<T>(), op.x.as<T>(), all_aligned(op.dx.data, op.dy.data, op.x.data)});
  });
}

}  // namespace rz::cuda
