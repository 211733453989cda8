// Plans of GEMMs: what cuBLASLt is asked for each shape, and which of its algorithms is taken. Row counts are in classes, since
// packed batches bring new ones every step: one of a class is asked for, and the others take the same algorithm.
#pragma once
#include <memory>

#include "cuda/cublaslt.h"
#include "cuda/matmul.h"

namespace rz::cuda {

void check_lt(int status, const char* op, const char* call);
// Errors: ERR_CUDA_UNAVAILABLE, naming every place that was tried.
const CublasLt& cublaslt_for(const char* op);
lt::Handle cublaslt_handle(const char* op);

// c (m, n) = a b + bias + onto. Pointers are read for their alignment, and written where proposals are timed.
struct GemmRequest {
  const char* op;
  int64_t m, n, k;
  Operand a, b;
  const View& c;
  const void* onto;  // null: nothing is added
  const void* bias;  // null: none, or none that the library can add
  bool tf32;
  // Of activations: a dimension of the result, or, in the gradient of a weight, that which is summed over.
  int64_t rows() const { return a.transposed ? k : m; }
  GemmRequest with_rows(int64_t rows) const;
};

// The descriptors of one shape, and the algorithm.
struct GemmPlan {
  lt::MatmulDesc desc = nullptr;
  lt::MatrixLayout a = nullptr, b = nullptr, c = nullptr;
  lt::Algo algo{};
  size_t workspace = 0;
  bool adds_bias = false;  // the library does
  bool settled = false;    // its algorithm stays
  GemmPlan() = default;
  GemmPlan(const GemmPlan&) = delete;
  ~GemmPlan();
};

// Every count up to 128, then eight to an octave: the greatest of its class.
int64_t row_class(int64_t rows);

// What KernelChoices says of proposals is followed: one is taken, or the first few are timed at the first GEMM of a class that can
// be repeated (nothing is added to its result in place) and is large enough (small ones may have to have the same bits on all ranks).
// Timing waits for the stream.
GemmPlan& gemm_plan(const GemmRequest& request, CudaStream& stream);

// Enqueues it, with bias if the plan adds it.
void multiply(const GemmRequest& request, const GemmPlan& plan, CudaStream& stream);

}  // namespace rz::cuda
