// Device memory. Ranges come from cudaMalloc, which waits for the device: so they are few and large.
#pragma once
#include <atomic>

#include "core/cuda.h"
#include "cuda/context.h"

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
  size_t reserved() const override { return held_; }
  bool make_room() override;
  void prepare(const Arena::Block& block, size_t bytes, Stream* home) override;
  [[noreturn]] void out_of_memory(size_t bytes) const override;

  Context& context_;
  const std::vector<std::unique_ptr<Stream>>* streams_;
  std::atomic<size_t> held_{0}, limit_{0};
};

}  // namespace rz::cuda
