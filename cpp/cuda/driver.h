// What is used of libcuda beside the runtime: waiting, on a stream, for a value that the host writes.
#pragma once
#include <cuda_runtime_api.h>

#include "core/library.h"

namespace rz::cuda {

struct Driver {
  LibraryReport report;
  int (*cuDriverGetVersion)(int* version) = nullptr;
  // Optional: a stream waits until *address >= value. Without it, ordering device work behind host work blocks the caller.
  int (*cuStreamWaitValue64)(cudaStream_t stream, unsigned long long address, unsigned long long value, unsigned flags) = nullptr;
};

// Looked for once.
const Driver& driver();

}  // namespace rz::cuda
