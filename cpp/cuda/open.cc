// Whether there is a device, why not, and opening it.
#include <cstdlib>

#include "cuda/backend.h"
#include "cuda/check.h"
#include "cuda/cublaslt.h"
#include "cuda/driver.h"

#ifndef RANKZERO_CUDA_ARCHITECTURES
#error "the build defines the architectures that kernels are compiled for"
#endif

namespace rz::cuda {

bool is_built() { return true; }

static std::string hexadecimal(const cudaUUID_t& id) {
  std::string text;
  for (char byte : id.bytes) {
    constexpr const char* digits = "0123456789abcdef";
    text += digits[static_cast<unsigned char>(byte) >> 4];
    text += digits[static_cast<unsigned char>(byte) & 15];
  }
  return text;
}

Description describe() {
  Description d;
  d.built = true;
  d.architectures = RANKZERO_CUDA_ARCHITECTURES;
  cudaRuntimeGetVersion(&d.runtime);
  d.libraries = {driver().report, cublaslt().report};
  if (!driver().report.usable()) {
    d.unavailable = "there is no NVIDIA driver (" + driver().report.explain() + ")";
    return d;
  }
  driver().cuDriverGetVersion(&d.driver);
  int count = 0;
  cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess || count == 0) {
    cudaGetLastError();
    d.unavailable = std::string("there is no device: ") + (status == cudaSuccess ? "the driver sees none" : cudaGetErrorString(status));
    return d;
  }
  for (int i = 0; i < count; ++i) {
    cudaDeviceProp properties;
    if (cudaGetDeviceProperties(&properties, i) != cudaSuccess) continue;
    d.devices.push_back({properties.name, hexadecimal(properties.uuid), properties.major, properties.minor, properties.multiProcessorCount, properties.totalGlobalMem});
  }
  if (d.devices.empty()) d.unavailable = "no device can be opened";
  return d;
}

// Ranks of a host take its devices in turn.
static int device_of_this_rank(size_t count) {
  const char* rank = std::getenv("LOCAL_RANK");
  return rank ? std::atoi(rank) % static_cast<int>(count) : 0;
}

std::unique_ptr<Backend> open(const std::vector<std::unique_ptr<Stream>>* streams, int index) {
  Description d = describe();
  if (!d.unavailable.empty()) fail("ERR_CUDA_UNAVAILABLE", "device cuda cannot be used: ", d.unavailable);
  const int count = static_cast<int>(d.devices.size());
  if (index >= count) fail("ERR_CUDA_UNAVAILABLE", "device cuda cannot be used: there is no device ", index, " among ", count);
  return std::make_unique<CudaBackend>(index >= 0 ? index : device_of_this_rank(d.devices.size()), streams);
}

}  // namespace rz::cuda
