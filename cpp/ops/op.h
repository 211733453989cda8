// What every op shares. An op is a plain struct of views and sizes with a name, its operands and a check(); `cpu::run(op)`
// executes it at once on the calling thread (the compute stream's worker), `cuda::run(op, stream)` enqueues it on a device.
// Floating views of one op have the op's compute dtype unless a comment says otherwise; accumulation is in float32.
#pragma once
#include <tuple>

#include "core/dtype.h"
#include "core/error.h"

namespace rz {

namespace cuda {
class CudaStream;
}

struct View {
  void* data = nullptr;  // null: absent (OptionalView)
  DType dtype = DType::Float32;
  int64_t numel = 0;
  explicit operator bool() const { return data != nullptr; }
  template <class T>
  T* as() const {
    return static_cast<T*>(data);
  }
};

// An operand that may be absent.
struct OptionalView : View {
  OptionalView() = default;
  OptionalView(const View& view) : View(view) {}
};

// All fields of an op in their order, which is that of the arguments in JavaScript: names and members from one list. The
// binding reads arguments by it (binding/ops.cc), and test/unit/op_signatures.test.ts compares it with src/native.ts.
#define RZ_OPERANDS(...)                                 \
  static constexpr const char* operands = #__VA_ARGS__;  \
  auto members() { return std::tie(__VA_ARGS__); }

inline void expect_numel(const char* op, const char* what, const View& v, int64_t want) {
  if (v.numel != want) fail("ERR_SHAPE", "[", op, "] ", what, " must have ", want, " elements but has ", v.numel);
}

inline void expect_dtype(const char* op, const char* what, const View& v, DType want) {
  if (v.dtype != want) fail("ERR_DTYPE", "[", op, "] ", what, " must be ", name_of(want), " but is ", name_of(v.dtype));
}

inline void expect_floating(const char* op, const char* what, const View& v) {
  if (!is_floating(v.dtype)) fail("ERR_DTYPE", "[", op, "] ", what, " must be floating but is ", name_of(v.dtype));
}

inline void expect(bool holds, const char* op, const char* message) {
  if (!holds) fail("ERR_ARGUMENT", "[", op, "] ", message);
}

}  // namespace rz
