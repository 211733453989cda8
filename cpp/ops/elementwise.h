// Moves, casts and sums over flat buffers.
#pragma once
#include "ops/op.h"

namespace rz {

struct Fill {
  static constexpr const char* name = "fill";
  View x;
  double value;
  RZ_OPERANDS(x, value)
  void check() const {}
};

// dst = cast(src): any floating dtype to any other, or the same dtype (a copy).
struct Copy {
  static constexpr const char* name = "copy";
  View dst, src;
  RZ_OPERANDS(dst, src)
  void check() const {
    expect_numel(name, "src", src, dst.numel);
    if (dst.dtype != src.dtype) {
      expect_floating(name, "src", src);
      expect_floating(name, "dst", dst);
    }
  }
};

// A rectangle of `rows` × `cols` elements, cast as Copy does. A row starts `pitch` elements after the one before it. dst and
// src must not overlap.
struct CopyRows {
  static constexpr const char* name = "copy_rows";
  View dst, src;
  int64_t rows, cols, dst_offset, dst_pitch, src_offset, src_pitch;
  RZ_OPERANDS(dst, src, rows, cols, dst_offset, dst_pitch, src_offset, src_pitch)
  void check() const {
    expect(rows >= 0 && cols >= 0, name, "rows and cols cannot be negative");
    expect_inside("dst", dst, dst_offset, dst_pitch);
    expect_inside("src", src, src_offset, src_pitch);
    if (dst.dtype != src.dtype) {
      expect_floating(name, "src", src);
      expect_floating(name, "dst", dst);
    }
  }

 private:
  void expect_inside(const char* what, const View& v, int64_t offset, int64_t pitch) const {
    if (rows == 0 || cols == 0) return;
    int64_t after = v.numel - offset - cols;  // elements behind the first row
    if (offset < 0 || after < 0 || pitch < cols || rows - 1 > after / pitch)
      fail("ERR_SHAPE", "[", name, "] ", rows, " rows of ", cols, " elements from ", offset, ", ", pitch,
           " from row to row, do not fit ", what, " of ", v.numel);
  }
};

// y = a + b; y may be a or b. a and b may differ in floating dtype from y (accumulation of gradients).
struct Add {
  static constexpr const char* name = "add";
  View y, a, b;
  RZ_OPERANDS(y, a, b)
  void check() const {
    expect_numel(name, "a", a, y.numel);
    expect_numel(name, "b", b, y.numel);
    expect_floating(name, "y", y);
    expect_floating(name, "a", a);
    expect_floating(name, "b", b);
  }
};

// y = x · factor · (by ? by[0] : 1); y may be x. With `accumulate`, y += … instead.
struct Scale {
  static constexpr const char* name = "scale";
  View y, x;
  OptionalView by;  // (1) float32: a factor known only on the device
  float factor;
  bool accumulate;
  RZ_OPERANDS(y, x, by, factor, accumulate)
  void check() const {
    expect_numel(name, "x", x, y.numel);
    expect_floating(name, "x", x);
    expect_floating(name, "y", y);
    if (by) {
      expect_numel(name, "by", by, 1);
      expect_dtype(name, "by", by, DType::Float32);
    }
  }
};

// out[0] (+)= Σ x², summed in float64 in a fixed order.
struct SumSquares {
  static constexpr const char* name = "sum_squares";
  View out;  // (1) float32
  View x;
  bool accumulate;
  RZ_OPERANDS(out, x, accumulate)
  void check() const {
    expect_numel(name, "out", out, 1);
    expect_dtype(name, "out", out, DType::Float32);
    expect_floating(name, "x", x);
  }
};

// From Σ g² to clipping: norm[0] = √sum[0]; factor[0] = min(1, max_norm / (norm + 1e-6)), as torch.nn.utils does.
struct ClipFactor {
  static constexpr const char* name = "clip_factor";
  View norm, factor;  // (1) float32
  View sum;           // (1) float32
  float max_norm;
  RZ_OPERANDS(norm, factor, sum, max_norm)
  void check() const {
    for (const View* t : {&norm, &factor, &sum}) {
      expect_numel(name, "operand", *t, 1);
      expect_dtype(name, "operand", *t, DType::Float32);
    }
  }
};

namespace cpu {
void run(const Fill&);
void run(const Copy&);
void run(const CopyRows&);
void run(const Add&);
void run(const Scale&);
void run(const SumSquares&);
void run(const ClipFactor&);
}  // namespace cpu

namespace cuda {
void run(const Fill&, CudaStream&);
void run(const Copy&, CudaStream&);
void run(const CopyRows&, CudaStream&);
void run(const Add&, CudaStream&);
void run(const Scale&, CudaStream&);
void run(const SumSquares&, CudaStream&);
void run(const ClipFactor&, CudaStream&);
}  // namespace cuda
}  // namespace rz
