#include "cuda/pinned_ring.h"

#include "cuda/check.h"

namespace rz::cuda {

PinnedRing::PinnedRing() {
  check(cudaHostAlloc(&memory_, kSlots * kSlotBytes, cudaHostAllocPortable), "allocating pinned memory");
  for (size_t i = 0; i < kSlots; ++i) slots_[i].data = static_cast<std::byte*>(memory_) + i * kSlotBytes;
}

PinnedRing::~PinnedRing() { cudaFreeHost(memory_); }

PinnedRing::Slot& PinnedRing::next() {
  Slot& slot = slots_[next_];
  next_ = (next_ + 1) % kSlots;
  return slot;
}

}  // namespace rz::cuda
