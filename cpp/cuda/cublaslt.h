// The part of cuBLASLt that is used, opened at run time: version 13 or 12, whose calls and structures are the same here.
#pragma once
#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "core/library.h"

namespace rz::cuda {

// Their numbers are the library's ABI.
namespace lt {
using Handle = void*;
using MatmulDesc = void*;
using MatrixLayout = void*;
using Preference = void*;

enum ComputeType : int { kCompute32F = 68, kCompute32FFastTF32 = 77 };
enum DataType : int { kReal32F = 0, kReal16F = 2, kReal16BF = 14 };
enum MatmulAttribute : int { kTransA = 3, kTransB = 4, kEpilogue = 7, kBiasPointer = 8, kBiasDataType = 26 };
enum Epilogue : int { kEpilogueDefault = 1, kEpilogueBias = 4 };
enum PreferenceAttribute : int { kMaxWorkspaceBytes = 1, kMinAlignmentA = 5, kMinAlignmentB = 6, kMinAlignmentC = 7, kMinAlignmentD = 8 };

struct Algo {
  uint64_t data[8];
};
struct HeuristicResult {
  Algo algo;
  size_t workspace_bytes;
  int state;
  float waves;
  int reserved[4];
};
static_assert(sizeof(HeuristicResult) == 64 + 8 + 4 + 4 + 16);
}  // namespace lt

// X(name, arguments): all are required. Results are int: newer libraries add codes; 0 is success.
#define RZ_CUBLASLT_FUNCTIONS(X)                                                                                              \
  X(Create, (lt::Handle * handle))                                                                                            \
  X(MatmulDescCreate, (lt::MatmulDesc * desc, int compute_type, int scale_type))                                              \
  X(MatmulDescDestroy, (lt::MatmulDesc desc))                                                                                 \
  X(MatmulDescSetAttribute, (lt::MatmulDesc desc, int attribute, const void* value, size_t bytes))                            \
  X(MatrixLayoutCreate, (lt::MatrixLayout * layout, int type, uint64_t rows, uint64_t columns, int64_t leading))              \
  X(MatrixLayoutDestroy, (lt::MatrixLayout layout))                                                                           \
  X(MatmulPreferenceCreate, (lt::Preference * preference))                                                                    \
  X(MatmulPreferenceDestroy, (lt::Preference preference))                                                                     \
  X(MatmulPreferenceSetAttribute, (lt::Preference preference, int attribute, const void* value, size_t bytes))                \
  X(MatmulAlgoGetHeuristic,                                                                                                   \
    (lt::Handle handle, lt::MatmulDesc desc, lt::MatrixLayout a, lt::MatrixLayout b, lt::MatrixLayout c, lt::MatrixLayout d,  \
     lt::Preference preference, int wanted, lt::HeuristicResult* results, int* found))                                        \
  X(MatmulAlgoCheck,                                                                                                          \
    (lt::Handle handle, lt::MatmulDesc desc, lt::MatrixLayout a, lt::MatrixLayout b, lt::MatrixLayout c, lt::MatrixLayout d,  \
     const lt::Algo* algo, lt::HeuristicResult* result))                                                                      \
  X(Matmul, (lt::Handle handle, lt::MatmulDesc desc, const void* alpha, const void* a, lt::MatrixLayout a_layout,             \
             const void* b, lt::MatrixLayout b_layout, const void* beta, const void* c, lt::MatrixLayout c_layout, void* d,   \
             lt::MatrixLayout d_layout, const lt::Algo* algo, void* workspace, size_t workspace_bytes, cudaStream_t stream))

struct CublasLt {
  LibraryReport report;
  size_t (*GetVersion)() = nullptr;
#define RZ_ENTRY(name, arguments) int(*name) arguments = nullptr;
  RZ_CUBLASLT_FUNCTIONS(RZ_ENTRY)
#undef RZ_ENTRY
};

// Looked for once.
const CublasLt& cublaslt();

}  // namespace rz::cuda
