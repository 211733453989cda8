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
    : CachingAllocator(Device::Cuda, streams, block_sizes()), context_(context), streams_(streams), pages_(context) {}

CudaAllocator::~CudaAllocator() { trim(); }

std::byte* CudaAllocator::map_range(size_t bytes) {
  if (pages_.page() > 0) return bytes % pages_.page() == 0 && pages_.spare(bytes, limit_) == bytes ? pages_.map(bytes, {}) : nullptr;
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
  if (pages_.page() > 0) return pages_.unmap(data, bytes);
  cudaFree(data);
  held_ -= bytes;
}

void CudaAllocator::release_spare() {
  if (pages_.page() > 0) pages_.release_spare();
}

// cudaMalloc may wait for the device. Mapping pages does not.
void CudaAllocator::before_growth() {
  if (pages_.page() == 0) context_.await_host();
}

// Ranges without a block in use are worth more as one new range. Free pages were tried before this, wherever they were: they go back
// to the device, which another process may need.
bool CudaAllocator::make_room() {
  size_t before = held_;
  for (auto& stream : *streams_) stream->drain(stream->record());
  trim();
  return held_ < before;
}

void CudaAllocator::prepare(const Arena::Block& block, size_t bytes, Stream* home) {
  guard_block(block.data, bytes, block.bytes, *static_cast<CudaStream*>(home));
}

void CudaAllocator::out_of_memory(size_t bytes, MemoryKind kind) const {
  MemoryStats now = stats();
  size_t free = 0, total = 0;
  cudaMemGetInfo(&free, &total);
  std::string limit = limit_ > 0 ? " The limit set for this process is " + std::to_string(limit_) + "." : "";
  fail("ERR_OUT_OF_MEMORY", "out of memory on ", context_.properties().name, ": ", bytes, " bytes of ", name_of(kind),
       " were asked for after [", context_.last_op ? context_.last_op : "nothing", "], ", now.total, " are in use (", in_use_by_kind(), ") and ",
       now.reserved, " reserved by this process, of which ", now.reserved - now.total, " are free but too scattered; the device has ", free, " free of ", total, ".", limit);
}

}  // namespace rz::cuda
