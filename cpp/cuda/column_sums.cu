#include "cuda/column_sums.h"

#include "cuda/grid.h"
#include "cuda/launch.h"
#include "cuda/vec.h"

namespace rz::cuda {

constexpr int kColumns = 32, kLanes = 8;  // of a block: lane l sums rows l, l + 8, …

template <class O, class T>
static __global__ void column_sums(O* out, const T* x, int64_t rows, int64_t columns, int64_t rows_per_part, bool accumulate) {
  RZ_SHARED(float, partial, kColumns * kLanes);
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kColumns + threadIdx.x;
  const int64_t begin = static_cast<int64_t>(blockIdx.y) * rows_per_part;
  const int64_t end = begin + rows_per_part < rows ? begin + rows_per_part : rows;
  float sum = 0;
  if (column < columns)
    for (int64_t r = begin + threadIdx.y; r < end; r += kLanes) sum += widen(x[r * columns + column]);
  partial[threadIdx.y * kColumns + threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || column >= columns) return;
  for (int lane = 1; lane < kLanes; ++lane) sum += partial[lane * kColumns + threadIdx.x];
  O* to = out + static_cast<int64_t>(blockIdx.y) * columns + column;
  *to = narrow<O>(accumulate ? widen(*to) + sum : sum);
}

void write_column_sums(const View& out, const float* parts, int64_t rows, int64_t columns, bool accumulate, CudaStream& stream) {
  with_floating(out.dtype, [&](auto o) {
    using O = decltype(o);
    launch(column_sums<O, float>, static_cast<unsigned>(ceil_div(columns, kColumns)), dim3(kColumns, kLanes), 0, stream, out.as<O>(), parts,
           rows, columns, rows, accumulate);
  });
}

void add_up_columns(const View& out, const View& x, int64_t rows, int64_t columns, bool accumulate, CudaStream& stream) {
  constexpr int64_t kRowsPerPart = 256;
  const int64_t parts = std::max<int64_t>(1, ceil_div(rows, kRowsPerPart));
  auto scratch = stream.scratch(static_cast<size_t>(parts * columns) * sizeof(float));
  auto* sums = static_cast<float*>(scratch->data());
  with_floating(x.dtype, [&](auto t) {
    using T = decltype(t);
    launch(column_sums<float, T>, dim3(static_cast<unsigned>(ceil_div(columns, kColumns)), static_cast<unsigned>(parts)),
           dim3(kColumns, kLanes), 0, stream, sums, x.as<T>(), rows, columns, kRowsPerPart, false);
  });
  write_column_sums(out, sums, parts, columns, accumulate, stream);
}

}  // namespace rz::cuda
