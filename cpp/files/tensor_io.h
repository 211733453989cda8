// Tensor elements from and to ranges of a file, converted on the way (floating to floating). Scratch is bounded: one
// chunk of kChunk bytes a thread. Ranges of kParallel bytes or more are split over threads, each with its own preads.
#pragma once
#include "core/dtype.h"
#include "files/file.h"

namespace rz::files {

constexpr size_t kChunk = size_t{1} << 20;
constexpr size_t kCached = size_t{256} << 10;  // what goes from file to memory file by way of the cache
constexpr size_t kParallel = size_t{8} << 20;

int read_threads();
void set_read_threads(int threads);  // 1 … 64

// Throws ERR_DTYPE unless the types are equal or both floating. `what` names the operation.
void expect_convertible(const char* what, const File& file, DType from, DType to);

// Where elements go. With `backing`, the descriptor of the memory that `data` maps, they are written through it: pages that
// do not exist yet are then made without being zeroed or faulted in first.
struct Target {
  void* data;
  DType dtype;
  int backing = -1;
  int64_t backing_offset = 0;  // bytes
};

// to[i] = element i of the range at `offset`, 0 ≤ i < numel.
void read_tensor(const File& file, int64_t offset, const Target& to, int64_t numel, DType src_dtype);

// A strided range: row r (row_elements long) starts row_stride elements after row r - 1. The target is contiguous.
struct Rows {
  int64_t rows, row_elements, row_stride;
};
void read_rows(const File& file, int64_t offset, const Target& to, Rows shape, DType src_dtype);

void write_tensor(File& file, int64_t offset, const void* src, DType src_dtype, int64_t numel, DType dst_dtype);

}  // namespace rz::files
