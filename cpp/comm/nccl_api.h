// The part of NCCL that is used, opened at run time; its binary interface is stable within version 2. No header of NCCL or of
// CUDA is needed to build.
#pragma once
#include <cstddef>

#include "core/library.h"

struct CUstream_st;

namespace rz::comm {

namespace nccl {
using Comm = void*;
using Stream = CUstream_st*;
struct UniqueId {
  char bytes[128];
};
enum DataType : int { kUint8 = 1, kInt32 = 2, kInt64 = 4, kFloat16 = 6, kFloat32 = 7, kBFloat16 = 9 };
enum ReduceOp : int { kSum = 0, kProd = 1, kMax = 2, kMin = 3, kAvg = 4 };
// Results are int: newer libraries add codes. 0 is success.
constexpr int kInProgress = 7;
// The first version whose groups of calls may hold aborts.
constexpr int kAbortsInGroups = 22200;
}  // namespace nccl

// X(required, name, arguments)
#define RZ_NCCL_FUNCTIONS(X)                                                                                              \
  X(true, GetUniqueId, (nccl::UniqueId * id))                                                                             \
  X(true, CommInitRank, (nccl::Comm * comm, int size, nccl::UniqueId id, int rank))                                       \
  X(true, CommDestroy, (nccl::Comm comm))                                                                                 \
  X(true, CommAbort, (nccl::Comm comm))                                                                                   \
  X(true, CommGetAsyncError, (nccl::Comm comm, int* result))                                                              \
  X(false, CommSplit, (nccl::Comm comm, int color, int key, nccl::Comm* part, void* config))                              \
  X(true, Broadcast, (const void* in, void* out, size_t count, int type, int root, nccl::Comm comm, nccl::Stream stream)) \
  X(true, AllReduce, (const void* in, void* out, size_t count, int type, int op, nccl::Comm comm, nccl::Stream stream))   \
  X(true, AllGather, (const void* in, void* out, size_t count, int type, nccl::Comm comm, nccl::Stream stream))           \
  X(true, ReduceScatter, (const void* in, void* out, size_t count, int type, int op, nccl::Comm comm, nccl::Stream stream)) \
  X(true, Send, (const void* in, size_t count, int type, int to, nccl::Comm comm, nccl::Stream stream))                   \
  X(true, Recv, (void* out, size_t count, int type, int from, nccl::Comm comm, nccl::Stream stream))                      \
  X(true, GroupStart, ())                                                                                                 \
  X(true, GroupEnd, ())

struct Nccl {
  LibraryReport report;
  int version = 0;  // as 22105 for 2.21.5
  const char* (*GetErrorString)(int result) = nullptr;
  const char* (*GetLastError)(nccl::Comm comm) = nullptr;  // optional
#define RZ_ENTRY(required, name, arguments) int(*name) arguments = nullptr;
  RZ_NCCL_FUNCTIONS(RZ_ENTRY)
#undef RZ_ENTRY
};

// Looked for once.
const Nccl& nccl_api();

// Calls that start together.
template <class Calls>
int in_group(const Nccl& api, Calls calls) {
  int result = api.GroupStart();
  if (result == 0) result = calls();
  int ended = api.GroupEnd();  // also after a failure: the group must not stay open
  return result ? result : ended;
}

}  // namespace rz::comm
