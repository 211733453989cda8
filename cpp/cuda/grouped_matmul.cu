// A block makes one tile of one GEMM. Tiles of both operands go through shared memory: while one is multiplied, the next is
// on its way in registers. 16-bit operands are multiplied by tensor cores, float32 by fused multiply-adds. Sums are in
// float32, in the order of k.
#include "cuda/grouped_matmul.h"

#include <type_traits>

#include "cuda/grid.h"
#include "cuda/launch.h"
#include "cuda/mma.h"
#include "cuda/vec.h"

namespace rz::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMostGroups = 128;  // of a launch: the matrices' addresses are a parameter of the kernel

struct Matrices {
  void* data[kMostGroups];
  bool accumulate[kMostGroups];
};

// Rows of an operand as a kernel finds them.
template <class T>
struct Rows {
  const T* data;
  const int32_t* order;
  int64_t top_k, columns;
  __device__ const T* row(int64_t i) const { return data + (order ? order[i] / top_k : i) * columns; }
};

// A tile of rows × columns of a row-major matrix: 16 bytes at a time to the registers of all threads, then to shared memory.
// Shared rows are longer by 16 bytes, so that those of a fragment are in different banks. What is outside is zero.
template <class T, int kRows, int kColumns>
struct Tile {
  static constexpr int kEach = 16 / sizeof(T), kAcross = kColumns / kEach, kPieces = kRows * kAcross / kThreads;
  static constexpr int kPitch = kColumns + kEach, kNumel = kRows * kPitch;
  static_assert(kPieces * kThreads == kRows * kAcross);
  Bytes16 held[kPieces];

  // row(r): the address of row r of the tile, asked for rows below `rows` only.
  template <class Row>
  __device__ __forceinline__ void load(const Row& row, int64_t rows, int64_t column, int64_t columns, bool aligned) {
#pragma unroll
    for (int p = 0; p < kPieces; ++p) {
      const int piece = p * kThreads + static_cast<int>(threadIdx.x), r = piece / kAcross;
      const int64_t c = column + piece % kAcross * kEach;
      held[p] = {};
      if (r >= rows || c >= columns) continue;
      const T* from = row(r) + c;
      if (aligned && c + kEach <= columns) {
        held[p] = *reinterpret_cast<const Bytes16*>(from);
      } else {
        T* to = reinterpret_cast<T*>(&held[p]);
#pragma unroll
        for (int i = 0; i < kEach; ++i)
          if (c + i < columns) to[i] = from[i];
      }
    }
  }
  __device__ __forceinline__ void store(T* shared) const {
#pragma unroll
    for (int p = 0; p < kPieces; ++p) {
      const int piece = p * kThreads + static_cast<int>(threadIdx.x);
      *reinterpret_cast<Bytes16*>(shared + piece / kAcross * kPitch + piece % kAcross * kEach) = held[p];
    }
  }
};

// The product of two tiles in shared memory, added to what each thread keeps; a warp all of whose part is outside rests.
// kATransposed: the tile of a is (k, m), not (m, k); kBTransposed: that of b is (n, k), not (k, n). each(visit): visit(row, column,
// sum) for all that this thread keeps.
template <class T>
struct Product {
  static constexpr int kM = 128, kN = 128, kK = 32;
  static constexpr int kWarpM = 64, kWarpN = 32, kRowTiles = kWarpM / 16, kColumnTiles = kWarpN / 8;
  float sums[kRowTiles][kColumnTiles][4] = {};

  template <bool kATransposed, bool kBTransposed>
  __device__ __forceinline__ void add(const T* a, int a_pitch, const T* b, int b_pitch, int64_t rows, int64_t columns) {
    if (first_row() >= rows || first_column() >= columns) return;
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const int l = lane % 8, low = lane / 8 % 2 * 8, high = lane / 16 * 8;  // matrix i of a load: offsets i % 2 and i / 2
#pragma unroll
    for (int k = 0; k < kK; k += 16) {
      uint32_t right[kColumnTiles / 2][4];
#pragma unroll
      for (int j = 0; j < kColumnTiles / 2; ++j) {
        const int n = first_column() + j * 16;
        if constexpr (kBTransposed) load_matrices(right[j], shared_address(b + (n + high + l) * b_pitch + k + low));
        else load_matrices_transposed(right[j], shared_address(b + (k + low + l) * b_pitch + n + high));
      }
#pragma unroll
      for (int i = 0; i < kRowTiles; ++i) {
        const int m = first_row() + i * 16;
        uint32_t left[4];
        if constexpr (kATransposed) load_matrices_transposed(left, shared_address(a + (k + high + l) * a_pitch + m + low));
        else load_matrices(left, shared_address(a + (m + low + l) * a_pitch + k + high));
#pragma unroll
        for (int j = 0; j < kColumnTiles; ++j) mma<T>(sums[i][j], left, right[j / 2][j % 2 * 2], right[j / 2][j % 2 * 2 + 1]);
      }
    }
  }
  template <class Visit>
  __device__ __forceinline__ void each(const Visit& visit) const {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
    for (int i = 0; i < kRowTiles; ++i)
#pragma unroll
      for (int j = 0; j < kColumnTiles; ++j)
#pragma unroll
        for (int s = 0; s < 4; ++s)
          visit(first_row() + i * 16 + lane / 4 + s / 2 * 8, first_column() + j * 8 + lane % 4 * 2 + s % 2, sums[i][j][s]);
  }

 private:
  static __device__ __forceinline__ int warp() { return static_cast<int>(threadIdx.x) / kWarp; }
  static __device__ __forceinline__ int first_row() { return warp() / 4 * kWarpM; }
  static __device__ __forceinline__ int first_column() { return warp() % 4 * kWarpN; }
};

template <>
struct Product<float> {
  static constexpr int kM = 64, kN = 64, kK = 16;
  float sums[4][4] = {};

  template <bool kATransposed, bool kBTransposed>
  __device__ __forceinline__ void add(const float* a, int a_pitch, const float* b, int b_pitch, int64_t, int64_t) {
#pragma unroll
    for (int k = 0; k < kK; ++k) {
      float left[4], right[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        left[i] = kATransposed ? a[k * a_pitch + row(i)] : a[row(i) * a_pitch + k];
        right[i] = kBTransposed ? b[column(i) * b_pitch + k] : b[k * b_pitch + column(i)];
      }
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) sums[i][j] += left[i] * right[j];
    }
  }
  template <class Visit>
  __device__ __forceinline__ void each(const Visit& visit) const {
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) visit(row(i), column(j), sums[i][j]);
  }

 private:
  static __device__ __forceinline__ int row(int i) { return static_cast<int>(threadIdx.x) / 16 + i * 16; }
  static __device__ __forceinline__ int column(int j) { return static_cast<int>(threadIdx.x) % 16 + j * 16; }
};

// c[m][n] (+)= Σ a b of one tile. load(tile of a, tile of b, first k): what is at k … k + kK.
template <class T, class C, bool kATransposed, bool kBTransposed, class Load>
__device__ __forceinline__ void multiply_tile(C* c, int64_t pitch, int64_t rows, int64_t columns, int64_t k, bool accumulate, const Load& load) {
  using P = Product<T>;
  using TileA = std::conditional_t<kATransposed, Tile<T, P::kK, P::kM>, Tile<T, P::kM, P::kK>>;
  using TileB = std::conditional_t<kBTransposed, Tile<T, P::kN, P::kK>, Tile<T, P::kK, P::kN>>;
  T* shared = dynamic_shared<T>();  // (2) of both tiles
  constexpr int kNumel = TileA::kNumel + TileB::kNumel;
  P product;
  TileA a;
  TileB b;
  load(a, b, 0);
  for (int64_t at = 0; at < k; at += P::kK) {
    T* now = shared + at / P::kK % 2 * kNumel;
    a.store(now);
    b.store(now + TileA::kNumel);
    __syncthreads();
    if (at + P::kK < k) load(a, b, at + P::kK);
    product.template add<kATransposed, kBTransposed>(now, TileA::kPitch, now + TileA::kNumel, TileB::kPitch, rows, columns);
  }
  product.each([&](int row, int column, float sum) {
    if (row >= rows || column >= columns) return;
    C* to = c + row * pitch + column;
    *to = narrow<C>(accumulate ? widen(*to) + sum : sum);
  });
}

template <class T, bool kATransposed, bool kBTransposed>
constexpr size_t shared_bytes() {
  using P = Product<T>;
  constexpr int kPad = 16 / sizeof(T);
  constexpr int a = kATransposed ? P::kK * (P::kM + kPad) : P::kM * (P::kK + kPad);
  constexpr int b = kBTransposed ? P::kN * (P::kK + kPad) : P::kK * (P::kN + kPad);
  return 2 * (a + b) * sizeof(T);
}

// Block (tile of columns, tile of rows counted over the groups first … first + count).
template <class T, class C, bool kTransposed>
__global__ void __launch_bounds__(kThreads)
    multiply_groups(C* c, Rows<T> a, Matrices w, const int32_t* offsets, int first, int count, int64_t n, int64_t k, bool accumulate,
                    bool a_aligned, bool w_aligned) {
  using P = Product<T>;
  int64_t tile = blockIdx.y;
  int group = 0;
  int64_t begin = 0, rows = 0;
  for (; group < count; ++group) {
    begin = offsets[first + group];
    rows = offsets[first + group + 1] - begin;
    const int64_t tiles = (rows + P::kM - 1) / P::kM;
    if (tile < tiles) break;
    tile -= tiles;
  }
  if (group == count) return;
  begin += tile * P::kM;
  rows -= tile * P::kM;
  const int64_t column = static_cast<int64_t>(blockIdx.x) * P::kN;
  const T* matrix = static_cast<const T*>(w.data[group]);
  multiply_tile<T, C, false, kTransposed>(c + begin * n + column, n, rows, n - column, k, accumulate, [&](auto& left, auto& right, int64_t at) {
    left.load([&](int r) { return a.row(begin + r); }, rows, at, k, a_aligned);
    if constexpr (kTransposed) right.load([&](int r) { return matrix + (column + r) * k; }, n - column, at, k, w_aligned);
    else right.load([&](int r) { return matrix + (at + r) * n; }, k - at, column, n, w_aligned);
  });
}

// Block (tile of columns, tile of rows, group).
template <class T, class C>
__global__ void __launch_bounds__(kThreads)
    multiply_over_groups(Matrices dw, Rows<T> a, Rows<T> b, const int32_t* offsets, int first, int64_t m, int64_t n, bool a_aligned,
                         bool b_aligned) {
  using P = Product<T>;
  const int group = static_cast<int>(blockIdx.z);
  C* c = static_cast<C*>(dw.data[group]);
  if (!c) return;
  const int64_t begin = offsets[first + group], rows = offsets[first + group + 1] - begin;
  const int64_t row = static_cast<int64_t>(blockIdx.y) * P::kM, column = static_cast<int64_t>(blockIdx.x) * P::kN;
  multiply_tile<T, C, true, false>(c + row * n + column, n, m - row, n - column, rows, dw.accumulate[group],
                                 [&](auto& left, auto& right, int64_t at) {
    left.load([&](int r) { return a.row(begin + at + r); }, rows - at, row, m, a_aligned);
    right.load([&](int r) { return b.row(begin + at + r); }, rows - at, column, n, b_aligned);
  });
}

template <class T>
Rows<T> rows_of(const PairRows& p, int64_t columns) {
  return {p.view.as<T>(), p.order, p.top_k, columns};
}

bool rows_aligned(const View& v, int64_t columns) { return is_aligned(v.data) && columns * size_of(v.dtype) % 16 == 0; }

// Calls visit(T, C): C is T or float.
template <class Visit>
void with_types(DType operands, DType result, Visit visit) {
  with_floating(operands, [&](auto t) { result == DType::Float32 ? visit(t, 0.0f) : visit(t, t); });
}

}  // namespace

void grouped_matmul(const char* op, const Groups& groups, int64_t n, int64_t k, PairRows a, const std::vector<View>& w, bool transposed,
                    const View& c, bool accumulate, CudaStream& stream) {
  expect(c.dtype == DType::Float32 || (transposed && c.dtype == a.view.dtype), op, "a GEMM's result has the dtype of its operands or float32");
  if (groups.rows == 0) return;
  for (int64_t first = 0; first < groups.count; first += kMostGroups) {
    const int64_t count = std::min(kMostGroups, groups.count - first);
    Matrices matrices{};
    bool aligned = true;
    for (int64_t e = 0; e < count; ++e) {
      const View& matrix = w[static_cast<size_t>(first + e)];
      matrices.data[e] = matrix.data;
      aligned &= rows_aligned(matrix, transposed ? k : n);
    }
    with_types(a.view.dtype, c.dtype, [&](auto t, auto r) {
      using T = decltype(t);
      using C = decltype(r);
      using P = Product<T>;
      // Every group may end in a tile that is not full.
      const dim3 grid(static_cast<unsigned>(ceil_div(n, P::kN)), static_cast<unsigned>(groups.rows / P::kM + std::min(count, groups.rows)));
      const auto start = [&](auto* kernel, size_t shared) {
        launch(kernel, grid, kThreads, shared, stream, c.as<C>(), rows_of<T>(a, k), matrices, groups.offsets, first, count, n, k, accumulate,
               rows_aligned(a.view, k), aligned);
      };
      if (transposed) return start(multiply_groups<T, C, true>, shared_bytes<T, false, true>());
      if constexpr (std::is_same_v<C, float>) start(multiply_groups<T, C, false>, shared_bytes<T, false, false>());
    });
  }
}

void grouped_matmul_over_rows(const char* op, const Groups& groups, int64_t m, int64_t n, PairRows a, PairRows b,
                              const std::vector<OptionalView>& dw, const std::vector<bool>& accumulate, size_t first_flag, CudaStream& stream) {
  for (DType result : {DType::Float32, DType::BFloat16, DType::Float16})
    for (int64_t first = 0; first < groups.count; first += kMostGroups) {
      const int64_t count = std::min(kMostGroups, groups.count - first);
      Matrices matrices{};
      bool any = false;
      for (int64_t e = 0; e < count; ++e) {
        const auto index = static_cast<size_t>(first + e);
        if (!dw[index] || dw[index].dtype != result) continue;
        any = true;
        matrices.data[e] = dw[index].data;
        matrices.accumulate[e] = accumulate[first_flag + index];
      }
      if (!any) continue;
      expect(result == DType::Float32 || result == a.view.dtype, op, "a gradient has the dtype of the operands or float32");
      with_types(a.view.dtype, result, [&](auto t, auto r) {
        using T = decltype(t);
        using C = decltype(r);
        using P = Product<T>;
        const dim3 grid(static_cast<unsigned>(ceil_div(n, P::kN)), static_cast<unsigned>(ceil_div(m, P::kM)), static_cast<unsigned>(count));
        launch(multiply_over_groups<T, C>, grid, kThreads, shared_bytes<T, true, false>(), stream, matrices, rows_of<T>(a, m), rows_of<T>(b, n),
               groups.offsets, first, m, n, rows_aligned(a.view, m), rows_aligned(b.view, n));
      });
    }
}

}  // namespace rz::cuda
