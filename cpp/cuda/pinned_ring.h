// Page-locked memory between host and device, as a ring of equal slots. A slot is handed out when nobody waits for it to be
// enqueued any more; that its last user is also done, the next one's stream waits for.
#pragma once
#include <array>
#include <cstddef>

#include "core/stream.h"

namespace rz::cuda {

class PinnedRing {
 public:
  static constexpr size_t kSlotBytes = size_t{4} << 20;
  static constexpr size_t kSlots = 4;
  struct Slot {
    std::byte* data = nullptr;
    Event free_after;
  };

  // Pins its memory, which a driver may only do when the device is idle.
  PinnedRing();
  ~PinnedRing();
  PinnedRing(const PinnedRing&) = delete;
  Slot& next();

 private:
  std::array<Slot, kSlots> slots_;
  size_t next_ = 0;
  void* memory_ = nullptr;
};

}  // namespace rz::cuda
