// Pages of device memory and the addresses at which they are mapped, by the driver's virtual memory management. A page can be
// mapped anew while work that was enqueued still finds it at its old address: the two are the same memory, and the order of
// streams is all that is needed between them. The old address is given up when that work is done; nobody waits for it.
#pragma once
#include <cstddef>
#include <map>
#include <vector>

#include "core/arena.h"
#include "cuda/context.h"
#include "cuda/driver.h"

namespace rz::cuda {

class Pages {
 public:
  explicit Pages(const Context& context);
  Pages(const Pages&) = delete;

  // 0: the device or its driver has no virtual memory management.
  size_t page() const { return page_; }
  // In bytes, mapped or spare.
  size_t held() const { return held_; }
  // Takes pages from the device until so many bytes are spare, or it has no more, or `limit` bytes are held (0: no limit).
  // Returns how many are.
  size_t spare(size_t bytes, size_t limit);
  // Maps `moved`, in its order, and spare pages behind it at new addresses. What is moved stays mapped where it was until its
  // events are complete.
  std::byte* map(size_t bytes, const std::vector<Arena::Block>& moved);
  // Gives pages back to the device, on which nothing is enqueued that uses them.
  void unmap(std::byte* data, size_t bytes);
  void release_spare();

 private:
  struct Old {
    std::byte* data;
    size_t bytes;
    std::vector<Event> pending;
  };
  void give_up(std::byte* data, size_t bytes);
  void give_up_old(bool all);

  const Context& context_;
  MemoryProperties properties_{};
  size_t page_ = 0, held_ = 0;
  std::map<std::byte*, PageHandle> mapped_;  // those at their newest address
  std::vector<PageHandle> spare_;
  std::vector<Old> old_;
  struct Reserved {
    size_t bytes, mapped;
  };
  std::map<std::byte*, Reserved> reserved_;
};

}  // namespace rz::cuda
