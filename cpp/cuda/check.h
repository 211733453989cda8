// Errors of the CUDA runtime as exceptions.
#pragma once
#include <cuda_runtime_api.h>

#include "core/error.h"

namespace rz::cuda {

inline void check(cudaError_t status, const char* doing) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // what is not sticky must not be reported again by the next call
  fail("ERR_CUDA", doing, ": ", cudaGetErrorString(status), " (", cudaGetErrorName(status), ")");
}

}  // namespace rz::cuda
