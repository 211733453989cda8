// Device memory. Ranges are made of pages that are mapped where they are wanted; or, where a driver cannot do that, come from
// cudaMalloc, which waits for the device: so they are few and large.
#pragma once
#include <atomic>

#include "core/cuda.h"
#include "cuda/context.h"
#include "cuda/pages.h"

namespace rz::cuda {

class CudaAllocator final : public CachingAllocator {
 public:
  CudaAllocator(Context& context, const std::vector<std::unique_ptr<Stream>>* streams);
  ~CudaAllocator() override;

  // At most so many bytes are held; 0: what the device has.
  void set_limit(size_t bytes) { limit_ = bytes; }

 private:
  std::byte* map_range(size_t bytes) override;
  void unmap_range(std::byte* data, size_t bytes) override;
  size_t reserved() const override { return held_ + pages_.held(); }
  bool make_room() override;
  void before_growth() override;
  size_t page_bytes() const override { return pages_.page(); }
  size_t spare_pages(size_t bytes) override { return pages_.spare(bytes, limit_); }
  void release_spare() override;
  std::byte* map_pages(size_t bytes, const std::vector<Arena::Block>& moved) override { return pages_.map(bytes, moved); }
  void prepare(const Arena::Block& block, size_t bytes, Stream* home) override;
  [[noreturn]] void out_of_memory(size_t bytes, MemoryKind kind) const override;

  Context& context_;
  const std::vector<std::unique_ptr<Stream>>* streams_;
  Pages pages_;
  std::atomic<size_t> held_{0}, limit_{0};  // held_: by cudaMalloc
};

}  // namespace rz::cuda
