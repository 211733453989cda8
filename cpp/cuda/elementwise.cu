// Fill, copy and cast, add, scale: one pass, eight elements a thread.
#include <cstring>
#include <type_traits>

#include "cuda/over_groups.h"
#include "ops/elementwise.h"

namespace rz::cuda {

constexpr int kThreads = 256;

template <class T>
struct FillMap {
  T* x;
  T value;
  bool aligned;
  __device__ void operator()(int64_t first, int64_t count) const {
    constexpr int kPieces = kGroup * sizeof(T) / 16;  // 0: a group of bytes is less than a piece
    if (kPieces > 0 && aligned && count == kGroup) {
      Bytes16 piece;
#pragma unroll
      for (int i = 0; i < static_cast<int>(16 / sizeof(T)); ++i) reinterpret_cast<T*>(&piece)[i] = value;
#pragma unroll
      for (int p = 0; p < kPieces; ++p) reinterpret_cast<Bytes16*>(x + first)[p] = piece;
      return;
    }
    for (int64_t i = 0; i < count; ++i) x[first + i] = value;
  }
};

template <class T>
static void fill_with(const View& x, T value, CudaStream& stream) {
  over_groups(x.numel, stream, FillMap<T>{x.as<T>(), value, is_aligned(x.data)});
}

void run(const Fill& op, CudaStream& stream) {
  switch (op.x.dtype) {
    case DType::Float32: return fill_with(op.x, static_cast<float>(op.value), stream);
    case DType::BFloat16: return fill_with(op.x, to_bf16(static_cast<float>(op.value)).bits, stream);
    case DType::Float16: return fill_with(op.x, to_f16(static_cast<float>(op.value)).bits, stream);
    case DType::Int64: return fill_with(op.x, static_cast<int64_t>(op.value), stream);
    case DType::Int32: return fill_with(op.x, static_cast<int32_t>(op.value), stream);
    case DType::UInt8: return fill_with(op.x, static_cast<uint8_t>(op.value), stream);
  }
}

template <class D, class S>
struct CastMap {
  D* dst;
  const S* src;
  bool dst_aligned, src_aligned;
  __device__ void operator()(int64_t first, int64_t count) const {
    float values[kGroup];
    load_group(values, src + first, count, src_aligned);
    store_group(dst + first, values, count, dst_aligned);
  }
};

void run(const Copy& op, CudaStream& stream) {
  if (op.dst.dtype == op.src.dtype) {
    const auto bytes = static_cast<size_t>(op.dst.numel * size_of(op.dst.dtype));
    if (bytes > 0) check(cudaMemcpyAsync(op.dst.data, op.src.data, bytes, cudaMemcpyDeviceToDevice, stream.handle()), "[copy]");
    return;
  }
  with_floating(op.dst.dtype, [&](auto d) {
    with_floating(op.src.dtype, [&](auto s) {
      using D = decltype(d);
      using S = decltype(s);
      if constexpr (!std::is_same_v<D, S>)
        over_groups(op.dst.numel, stream, CastMap<D, S>{op.dst.as<D>(), op.src.as<S>(), is_aligned(op.dst.data), is_aligned(op.src.data)});
    });
  });
}

// A row of the grid for each row of the rectangle, in a loop.
template <class D, class S>
static __global__ void cast_rows(D* dst, const S* src, int64_t rows, int64_t cols, int64_t dst_pitch, int64_t src_pitch) {
  for (int64_t row = blockIdx.y; row < rows; row += gridDim.y) {
    D* to = dst + row * dst_pitch;
    const S* from = src + row * src_pitch;
    const bool to_aligned = reinterpret_cast<uintptr_t>(to) % 16 == 0, from_aligned = reinterpret_cast<uintptr_t>(from) % 16 == 0;
    const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x * kGroup;
    for (int64_t i = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * kGroup; i < cols; i += stride) {
      float values[kGroup];
      load_group(values, from + i, cols - i, from_aligned);
      store_group(to + i, values, cols - i, to_aligned);
    }
  }
}

void run(const CopyRows& op, CudaStream& stream) {
  if (op.rows == 0 || op.cols == 0) return;
  if (op.dst.dtype == op.src.dtype) {
    const auto width = static_cast<size_t>(size_of(op.dst.dtype));
    const auto bytes = [&](int64_t elements) { return static_cast<size_t>(elements) * width; };
    check(cudaMemcpy2DAsync(op.dst.as<char>() + bytes(op.dst_offset), bytes(op.dst_pitch), op.src.as<char>() + bytes(op.src_offset),
                            bytes(op.src_pitch), bytes(op.cols), static_cast<size_t>(op.rows), cudaMemcpyDeviceToDevice, stream.handle()),
          "[copy_rows]");
    return;
  }
  const dim3 grid(static_cast<unsigned>(std::min<int64_t>(ceil_div(op.cols, kGroup * kThreads), 64)),
                  static_cast<unsigned>(std::min<int64_t>(op.rows, 4096)));
  with_floating(op.dst.dtype, [&](auto d) {
    with_floating(op.src.dtype, [&](auto s) {
      using D = decltype(d);
      using S = decltype(s);
      if constexpr (!std::is_same_v<D, S>)
        launch(cast_rows<D, S>, grid, kThreads, 0, stream, op.dst.as<D>() + op.dst_offset, op.src.as<S>() + op.src_offset, op.rows,
             op.cols, op.dst_pitch, op.src_pitch);
    });
  });
}

template <class Y, class A, class B>
struct AddMap {
  Y* y;
  const A* a;
  const B* b;
  bool y_aligned, a_aligned, b_aligned;
  __device__ void operator()(int64_t first, int64_t count) const {
    float left[kGroup], right[kGroup];
    load_group(left, a + first, count, a_aligned);
    load_group(right, b + first, count, b_aligned);
#pragma unroll
    for (int i = 0; i < kGroup; ++i) left[i] += right[i];
    store_group(y + first, left, count, y_aligned);
  }
};

void run(const Add& op, CudaStream& stream) {
  with_floating(op.y.dtype, [&](auto y) {
    with_floating(op.a.dtype, [&](auto a) {
      with_floating(op.b.dtype, [&](auto b) {
        using Y = decltype(y);
        using A = decltype(a);
        using B = decltype(b);
        over_groups(op.y.numel, stream, AddMap<Y, A, B>{op.y.as<Y>(), op.a.as<A>(), op.b.as<B>(), is_aligned(op.y.data),
                                                        is_aligned(op.a.data), is_aligned(op.b.data)});
      });
    });
  });
}

template <class Y, class X>
struct ScaleMap {
  Y* y;
  const X* x;
  const float* by;
  float factor;
  bool accumulate, y_aligned, x_aligned;
  __device__ void operator()(int64_t first, int64_t count) const {
    const float scale = by ? factor * *by : factor;
    float values[kGroup], old[kGroup];
    load_group(values, x + first, count, x_aligned);
    if (accumulate) load_group(old, y + first, count, y_aligned);
#pragma unroll
    for (int i = 0; i < kGroup; ++i) values[i] = accumulate ? old[i] + values[i] * scale : values[i] * scale;
    store_group(y + first, values, count, y_aligned);
  }
};

void run(const Scale& op, CudaStream& stream) {
  with_floating(op.y.dtype, [&](auto y) {
    with_floating(op.x.dtype, [&](auto x) {
      using Y = decltype(y);
      using X = decltype(x);
      over_groups(op.y.numel, stream, ScaleMap<Y, X>{op.y.as<Y>(), op.x.as<X>(), op.by.as<float>(), op.factor, op.accumulate,
                                                     is_aligned(op.y.data), is_aligned(op.x.data)});
    });
  });
}

}  // namespace rz::cuda
