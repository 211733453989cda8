// Whether there is a device, why not, and opening it.
#include "core/settings.h"
#include "cuda/architectures.h"
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

static DeviceInfo device_info(int index) {
  cudaDeviceProp properties;
  if (cudaError_t status = cudaGetDeviceProperties(&properties, index)) {
    cudaGetLastError();
    return {"device " + std::to_string(index), "", 0, 0, 0, 0, std::string("it cannot be asked for its properties: ") + cudaGetErrorString(status)};
  }
  std::string problem;
  if (!runs_on(RANKZERO_CUDA_ARCHITECTURES, properties.major, properties.minor))
    problem = "its compute capability is " + std::to_string(properties.major) + "." + std::to_string(properties.minor) +
              ", and this build has kernels for " + RANKZERO_CUDA_ARCHITECTURES + " only";
  return {properties.name, hexadecimal(properties.uuid), properties.major, properties.minor, properties.multiProcessorCount, properties.totalGlobalMem, problem};
}

// Why the runtime finds no device.
static std::string no_device(cudaError_t status, const Description& d) {
  if (status == cudaSuccess) return "the driver sees none";
  if (status == cudaErrorInsufficientDriver)
    return "the driver is for CUDA " + version_text(d.driver) + ", and this build needs one for " + version_text(d.runtime / 1000 * 1000) + " or newer";
  return cudaGetErrorString(status);
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
  d.driver = driver().version;
  int count = 0;
  cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess || count == 0) {
    cudaGetLastError();
    d.unavailable = "there is no device: " + no_device(status, d);
    return d;
  }
  for (int i = 0; i < count; ++i) d.devices.push_back(device_info(i));
  return d;
}

// Ranks of a host take its devices in turn.
static int device_of_this_rank(int count) { return settings().local_rank % count; }

std::unique_ptr<Backend> open(const std::vector<std::unique_ptr<Stream>>* streams, int index) {
  Description d = describe();
  if (!d.unavailable.empty()) fail("ERR_CUDA_UNAVAILABLE", "device cuda cannot be used: ", d.unavailable);
  const int count = static_cast<int>(d.devices.size());
  if (index >= count) fail("ERR_CUDA_UNAVAILABLE", "device cuda cannot be used: there is no device ", index, " among ", count);
  if (index < 0) index = device_of_this_rank(count);
  const DeviceInfo& device = d.devices[static_cast<size_t>(index)];
  if (!device.problem.empty()) fail("ERR_CUDA_UNAVAILABLE", "device cuda cannot be used: ", device.name, ": ", device.problem);
  return std::make_unique<CudaBackend>(index, streams);
}

}  // namespace rz::cuda
