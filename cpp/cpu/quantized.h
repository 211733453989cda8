// Tiles of quantised weights, for whoever multiplies them.
#pragma once
#include "ops/quantized.h"

namespace rz::cpu {

// A quantised matrix of `columns` columns.
struct QuantizedMatrix {
  const uint8_t* bytes;
  QuantizedLayout layout;
  int64_t columns;

  QuantizedMatrix(const View& w, int64_t scheme, int64_t lines, int64_t piece, int64_t rows, int64_t columns_)
      : bytes(w.as<uint8_t>()), layout(scheme, rows * columns_, lines, piece), columns(columns_) {}

  // Elements first … first + n of the flattened matrix, in dtype t, on this thread.
  void widen(void* to, DType t, int64_t first, int64_t n) const;
  // A tile (rows × tile_columns) in row-major order, in dtype t, on all threads.
  void widen_tile(void* to, DType t, int64_t row, int64_t column, int64_t rows, int64_t tile_columns) const;
  // As widen_tile, with the values of dtype t in float32.
  void widen_tile_to_f32(float* to, DType t, int64_t row, int64_t column, int64_t rows, int64_t tile_columns) const;
};

}  // namespace rz::cpu
