// Tiles of attention on tensor cores. A tile is rows of kDim 16-bit values in shared memory, in pieces of 16 bytes whose place
// in the row depends on the row, so that a column of pieces of 8 rows lies in different banks. A warp keeps its results as
// accumulators [m][n][4]: of 16 rows each, by 8 columns each, as mma.h lays them out; the probabilities of one product become
// the left operand of the next without leaving the registers.
#pragma once
#include "cuda/attention.h"
#include "cuda/mma.h"

namespace rz::cuda {

// Pieces that change places within a row: each other by the row's key.
template <int kDim>
constexpr int kAcross = kDim % 64 == 0 ? 8 : 4;
template <int kDim>
constexpr int kRowBytes = kDim * 2;

template <int kDim>
__device__ __forceinline__ SharedAddress place_of(int row, int piece) {
  constexpr int kMask = kAcross<kDim> - 1;
  const int key = kAcross<kDim> == 8 ? row & 7 : row >> 1 & 3;
  return static_cast<SharedAddress>(row * kRowBytes<kDim> + ((piece & ~kMask) | ((piece & kMask) ^ key)) * 16);
}

// Addresses of one lane in a tile. Those of other rows and columns differ from a few by constants, since keys repeat every
// eight rows: `turn` has those of the first steps of 16 columns.
template <int kDim>
struct Walk {
  static constexpr int kTurns = kAcross<kDim> / 2;
  SharedAddress turn[kTurns];
  // `row` and `step` are constants, and row is a multiple of eight.
  __device__ __forceinline__ SharedAddress at(int row, int step) const {
    return turn[step % kTurns] + static_cast<SharedAddress>(row * kRowBytes<kDim> + step / kTurns * kTurns * 32);
  }
};

// Where a lane begins. Walks are made from it for every use, which is cheaper than the registers to keep them.
template <int kDim>
class Lane {
 public:
  __device__ __forceinline__ explicit Lane(SharedAddress begin, int lane = static_cast<int>(threadIdx.x) % kWarp)
      : begin_(begin), left_(place_of<kDim>(lane % 16, lane / 16)), right_(place_of<kDim>(lane % 8 + lane / 16 * 8, lane / 8 % 2)) {}
  // In the tile that is so many bytes from the beginning of shared memory. Of a left operand or, transposed, of a right one
  // that is summed over its rows:
  __device__ __forceinline__ Walk<kDim> left(int tile) const { return walk(left_, tile); }
  // Of a right operand that is summed along its rows:
  __device__ __forceinline__ Walk<kDim> right(int tile) const { return walk(right_, tile); }

 private:
  __device__ __forceinline__ Walk<kDim> walk(SharedAddress first, int tile) const {
    renew(first);
    Walk<kDim> walk;
#pragma unroll
    for (int t = 0; t < Walk<kDim>::kTurns; ++t) walk.turn[t] = begin_ + static_cast<SharedAddress>(tile) + (first ^ static_cast<SharedAddress>(t * 32));
    return walk;
  }
  SharedAddress begin_, left_, right_;
};

// Begins to copy rows of `dim` values; zeros stand where the tile is larger.
template <int kRows, int kDim, int kThreads, class T>
__device__ __forceinline__ void load_tile(SharedAddress tile, const T* from, int stride, int rows, int dim) {
  constexpr int kEach = kThreads / kAcross<kDim>, kPieces = kDim / kGroup;  // rows at once
  static_assert(kRows % kEach == 0 && kEach % 8 == 0 && kPieces % kAcross<kDim> == 0);
  SharedAddress thread = threadIdx.x;
  renew(thread);
  const int row = static_cast<int>(thread) / kAcross<kDim>, piece = static_cast<int>(thread) % kAcross<kDim>;
  const SharedAddress to = tile + place_of<kDim>(row, piece);
  from += row * stride + piece * kGroup;
#pragma unroll
  for (int r = 0; r < kRows; r += kEach, from += static_cast<int64_t>(kEach) * stride)
#pragma unroll
    for (int c = 0; c < kPieces; c += kAcross<kDim>)
      copy_async_16(to + static_cast<SharedAddress>(r * kRowBytes<kDim> + c * 16), from + c * kGroup,
                    row + r < rows && (piece + c) * kGroup < dim);
}

// The left operand of a step of 16 columns.
template <int kDim, int M>
__device__ __forceinline__ void load_left(uint32_t (&left)[M][4], const Walk<kDim>& a, int step) {
#pragma unroll
  for (int m = 0; m < M; ++m) load_matrices(left[m], a.at(m * 16, step));
}

template <class T, int kDim, int M, int N>
__device__ __forceinline__ void add_scores(float (&s)[M][N][4], const uint32_t (&left)[M][4], const Walk<kDim>& b, int step) {
#pragma unroll
  for (int n = 0; n < N; n += 2) {
    uint32_t right[4];
    load_matrices(right, b.at(n * 8, step));
#pragma unroll
    for (int m = 0; m < M; ++m) {
      mma<T>(s[m][n], left[m], right[0], right[1]);
      mma<T>(s[m][n + 1], left[m], right[2], right[3]);
    }
  }
}

template <int M, int N>
__device__ __forceinline__ void clear(float (&x)[M][N][4]) {
#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int n = 0; n < N; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) x[m][n][e] = 0.0f;
}

// s = a bᵀ: of 16 M rows and 8 N rows.
template <class T, int kDim, int M, int N>
__device__ __forceinline__ void scores(float (&s)[M][N][4], const Walk<kDim>& a, const Walk<kDim>& b) {
  clear(s);
#pragma unroll
  for (int step = 0; step < kDim / 16; ++step) {
    uint32_t left[M][4];
    load_left(left, a, step);
    add_scores<T>(s, left, b, step);
  }
}

// c += p b: p of 16 M by 8 N, c of 16 M by 8 D.
template <class T, int kDim, int M, int N, int D>
__device__ __forceinline__ void accumulate(float (&c)[M][D][4], const float (&p)[M][N][4], const Walk<kDim>& b) {
#pragma unroll
  for (int step = 0; step < N / 2; ++step) {
    uint32_t left[M][4];
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        const float* pair = p[m][step * 2 + w / 2] + w % 2 * 2;
        left[m][w] = pack<T>(pair[0], pair[1]);
      }
#pragma unroll
    for (int d = 0; d < D; d += 2) {
      uint32_t right[4];
      load_matrices_transposed(right, b.at(step * 16, d / 2));
#pragma unroll
      for (int m = 0; m < M; ++m) {
        mma<T>(c[m][d], left[m], right[0], right[1]);
        mma<T>(c[m][d + 1], left[m], right[2], right[3]);
      }
    }
  }
}

// Row (0 or 1: the upper or the lower eight) of a lane's accumulators, and its first column.
__device__ __forceinline__ int lane_row(int m, int half) { return m * 16 + static_cast<int>(threadIdx.x) % kWarp / 4 + half * 8; }
__device__ __forceinline__ int lane_column(int n) { return n * 8 + static_cast<int>(threadIdx.x) % 4 * 2; }

// Puts `otherwise` where a query does not see a key: rows are queries from i, columns keys from j, or, kKeyRows, the reverse.
template <bool kKeyRows, int M, int N>
__device__ __forceinline__ void mask(float (&s)[M][N][4], const Span& span, int i, int j, float otherwise) {
  SharedAddress thread = threadIdx.x;
  renew(thread);  // no loop around this keeps a register for each element
  const int row = static_cast<int>(thread) % kWarp / 4, column = static_cast<int>(thread) % 4 * 2;
  const int first = span.last_key(i) - j + (kKeyRows ? column - row : row - column);
#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int n = 0; n < N; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int down = m * 16 + e / 2 * 8, across = n * 8 + e % 2;
        const int back = first + (kKeyRows ? across - down : down - across);
        if (static_cast<unsigned>(back) >= static_cast<unsigned>(span.window)) s[m][n][e] = otherwise;
      }
}

// Writes a warp's rows, `rows` of them, times `factor`. `room` is a tile of the warp's own rows: nobody may be using it.
template <int kDim, int M, int D, class T>
__device__ __forceinline__ void store_rows(T* to, int stride, int rows, int dim, const float (&c)[M][D][4], float factor, unsigned char* room) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  __syncwarp();
#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int d = 0; d < D; ++d)
        reinterpret_cast<uint32_t*>(room + place_of<kDim>(lane_row(m, half), d))[lane % 4] =
            pack<T>(c[m][d][half * 2] * factor, c[m][d][half * 2 + 1] * factor);
  __syncwarp();
#pragma unroll
  for (int i = lane; i < M * 16 * D; i += kWarp) {
    const int row = i / D, piece = i % D;
    if (row < rows && piece * kGroup < dim)
      *reinterpret_cast<Bytes16*>(to + static_cast<int64_t>(row) * stride + piece * kGroup) = *reinterpret_cast<const Bytes16*>(room + place_of<kDim>(row, piece));
  }
}

}  // namespace rz::cuda
