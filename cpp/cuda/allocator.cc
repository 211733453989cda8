#include "cuda/allocator.h"

#include <cstdlib>

#include "cuda/check.h"
#include "cuda/guard.h"
#include "cuda/stream.h"

namespace rz::cuda {

CachingAllocator::Sizes block_sizes() {
  CachingAllocator::Sizes sizes = kBlockSizes;
  sizes.gap = kBlockGap;
  return sizes;
}

CudaAllocator::CudaAllocator(Context& context, const std::vector<std::unique_ptr<Stream>>* streams)
    : CachingAllocator(Device::Cuda, streams, block_sizes()), context_(context), streams_(streams) {}

CudaAllocator::~CudaAllocator() { trim(); }

std::byte* CudaAllocator::map_range(size_t bytes) {
  if (limit_ > 0 && held_ + bytes > limit_) return nullptr;
  context_.bind();
  void* data = nullptr;
  cudaError_t status = cudaMalloc(&data, bytes);
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    return nullptr;
  }
  check(status, "allocating device memory");
  held_ += bytes;
  return static_cast<std::byte*>(data);
}

void CudaAllocator::unmap_range(std::byte* data, size_t bytes) {
  cudaFree(data);
  held_ -= bytes;
}

// Ranges without a block in use are worth more as one new range.
bool CudaAllocator::make_room() {
  size_t before = held_;
  for (auto& stream : *streams_) stream->drain(stream->record());
  trim();
  return held_ < before;
}

void CudaAllocator::prepare(const Arena::Block& block, size_t bytes, Stream* home) {
  guard_block(block.data, bytes, block.bytes, *static_cast<CudaStream*>(home));
}

void CudaAllocator::out_of_memory(size_t bytes) const {
  MemoryStats now = stats();
  size_t free = 0, total = 0;
  cudaMemGetInfo(&free, &total);
  std::string limit = limit_ > 0 ? " The limit set for this process is " + std::to_string(limit_) + "." : "";
  fail("ERR_OUT_OF_MEMORY", "out of memory on ", context_.properties().name, ": ", bytes, " bytes were asked for after [",
       context_.last_op ? context_.last_op : "nothing", "], ", now.total, " are in use and ", now.reserved,
       " reserved by this process; the device has ", free, " free of ", total, ".", limit);
}

}  // namespace rz::cuda
