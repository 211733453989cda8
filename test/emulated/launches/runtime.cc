// A CUDA runtime that runs nothing: it writes down every launch, one JSON object a line, and hands out addresses without
// memory. So the launchers, as nvcc compiled them, can be asked what they would launch for sizes of any model. And a cuBLASLt
// and a driver of the same kind.
#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstdlib>
#include <map>
#include <set>
#include <string>
#include <tuple>

#include "cuda/cublaslt.h"
#include "cuda/driver.h"

namespace {

std::map<const void*, std::string>& kernels() {
  static std::map<const void*, std::string> all;
  return all;
}
std::map<const void*, int> allowed;  // dynamic shared memory, where a kernel may have more than 48 KB
char* next_address = reinterpret_cast<char*>(uintptr_t{1} << 44);

}  // namespace

extern "C" {

void** __cudaRegisterFatBinary(void*) {
  static void* handle;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterFunction(void**, const char* stub, char*, const char* name, int, uint3*, uint3*, dim3*, dim3*, int*) {
  kernels()[stub] = name;
}
// Of <<<>>>, which the sources do not use.
unsigned __cudaPopCallConfiguration(dim3*, dim3*, size_t*, void*) { std::abort(); }
cudaError_t __cudaGetKernel(cudaKernel_t*, const void*) { std::abort(); }
cudaError_t __cudaLaunchKernel(cudaKernel_t, dim3, dim3, void**, size_t, cudaStream_t) { std::abort(); }

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) std::abort();
  if (allowed[kernel] >= value) {
    std::fprintf(stderr, "%s is allowed %d bytes of shared memory already and asks for %d\n", kernels().at(kernel).c_str(), allowed[kernel], value);
    std::exit(1);
  }
  allowed[kernel] = value;
  return cudaSuccess;
}

cudaError_t cudaLaunchKernel(const void* kernel, dim3 grid, dim3 block, void**, size_t shared, cudaStream_t) {
  static std::set<std::tuple<const void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, size_t>> seen;
  if (!seen.insert({kernel, grid.x, grid.y, grid.z, block.x, block.y, block.z, shared}).second) return cudaSuccess;
  const int most = allowed.count(kernel) ? allowed[kernel] : 48 << 10;
  std::printf("{\"kernel\":\"%s\",\"grid\":[%u,%u,%u],\"block\":[%u,%u,%u],\"shared\":%zu,\"allowed\":%d}\n", kernels().at(kernel).c_str(),
              grid.x, grid.y, grid.z, block.x, block.y, block.z, shared, most);
  return cudaSuccess;
}

// An H100.
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  *properties = {};
  properties->major = 9;
  properties->multiProcessorCount = 132;
  properties->maxThreadsPerMultiProcessor = 2048;
  return cudaSuccess;
}

cudaError_t cudaMalloc(void** data, size_t bytes) {
  *data = next_address;
  next_address += (bytes + 511) / 512 * 512;
  return cudaSuccess;
}
cudaError_t cudaFree(void*) { return cudaSuccess; }
cudaError_t cudaHostAlloc(void** data, size_t bytes, unsigned) {
  *data = std::calloc(bytes, 1);
  return cudaSuccess;
}
cudaError_t cudaFreeHost(void* data) {
  std::free(data);
  return cudaSuccess;
}
cudaError_t cudaHostGetDevicePointer(void** device, void* host, unsigned) {
  *device = host;
  return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  *free = *total = size_t{80} << 30;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int) { return cudaSuccess; }
cudaError_t cudaGetLastError() { return cudaSuccess; }
const char* cudaGetErrorName(cudaError_t) { return "an error"; }
const char* cudaGetErrorString(cudaError_t) { return "an error"; }
cudaError_t cudaDeviceGetStreamPriorityRange(int* lowest, int* highest) {
  *lowest = 0;
  *highest = -5;
  return cudaSuccess;
}

cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned, int) {
  *stream = nullptr;
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) { return cudaSuccess; }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = reinterpret_cast<cudaEvent_t>(&next_address);
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) { return cudaSuccess; }
cudaError_t cudaEventQuery(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventElapsedTime(float*, cudaEvent_t, cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaMemcpyAsync(void*, const void*, size_t, cudaMemcpyKind, cudaStream_t) { return cudaSuccess; }
cudaError_t cudaMemcpy2DAsync(void*, size_t, const void*, size_t, size_t, size_t, cudaMemcpyKind, cudaStream_t) { return cudaSuccess; }
cudaError_t cudaMemsetAsync(void*, int, size_t, cudaStream_t) { return cudaSuccess; }

}  // extern "C"

template <class... Arguments>
static int nothing(Arguments...) {
  return 0;
}

namespace rz::cuda {

const Driver& driver() {
  static const Driver table = [] {
    Driver d;
    d.cuTensorMapEncodeTiled = nothing;
    return d;
  }();
  return table;
}

const CublasLt& cublaslt() {
  static const CublasLt table = [] {
    CublasLt lt;
    lt.report.path = "launches";
#define RZ_NOTHING(name, arguments) lt.name = nothing;
    RZ_CUBLASLT_FUNCTIONS(RZ_NOTHING)
#undef RZ_NOTHING
    lt.MatmulAlgoGetHeuristic = [](lt::Handle, lt::MatmulDesc, lt::MatrixLayout, lt::MatrixLayout, lt::MatrixLayout, lt::MatrixLayout,
                                   lt::Preference, int, lt::HeuristicResult* results, int* found) {
      *results = {};
      *found = 1;
      return 0;
    };
    return lt;
  }();
  return table;
}

}  // namespace rz::cuda
