#include "cuda/pages.h"

#include <algorithm>
#include <iterator>

#include "cuda/check.h"

namespace rz::cuda {
namespace {

void check_driver(int status, const char* call) {
  if (status != 0) fail("ERR_CUDA", "mapping device memory: ", call, " returned ", status);
}

DeviceAddress address_of(const std::byte* data) { return reinterpret_cast<DeviceAddress>(data); }

bool has_functions(const Driver& d) {
  return d.cuMemGetAllocationGranularity && d.cuMemAddressReserve && d.cuMemAddressFree && d.cuMemCreate && d.cuMemRelease && d.cuMemMap &&
         d.cuMemUnmap && d.cuMemSetAccess;
}

}  // namespace

Pages::Pages(const Context& context) : context_(context) {
  const Driver& d = driver();
  if (!has_functions(d) || !d.has(kVirtualMemoryAttribute, context.device())) return;
  properties_.type = kPinned;
  properties_.location_type = kOnDevice;
  properties_.location_id = context.device();
  properties_.rdma = d.has(kRdmaAttribute, context.device());  // NCCL may let a network card at it
  constexpr int kMinimum = 0;
  size_t page = 0;
  if (d.cuMemGetAllocationGranularity(&page, &properties_, kMinimum) == 0) page_ = page;
}

size_t Pages::spare(size_t bytes, size_t limit) {
  context_.bind();
  while (spare_.size() * page_ < bytes && (limit == 0 || held_ + page_ <= limit)) {
    PageHandle page = 0;
    const int status = driver().cuMemCreate(&page, page_, &properties_, 0);
    if (status == kOutOfMemory) break;
    check_driver(status, "cuMemCreate");
    spare_.push_back(page);
    held_ += page_;
  }
  return std::min(spare_.size() * page_, bytes);
}

std::byte* Pages::map(size_t bytes, const std::vector<Arena::Block>& moved) {
  context_.bind();
  give_up_old(false);
  DeviceAddress base = 0;
  check_driver(driver().cuMemAddressReserve(&base, bytes, page_, 0, 0), "cuMemAddressReserve");
  auto* const begin = reinterpret_cast<std::byte*>(base);
  std::byte* to = begin;
  auto put = [&](PageHandle page) {
    check_driver(driver().cuMemMap(address_of(to), page_, 0, page, 0), "cuMemMap");
    mapped_[to] = page;
    to += page_;
  };
  for (const Arena::Block& block : moved) {
    for (std::byte* from = block.data; from < block.data + block.bytes; from += page_) {
      auto page = mapped_.extract(from);
      put(page.mapped());
    }
    old_.push_back({block.data, block.bytes, block.pending});
  }
  for (; to < begin + bytes; spare_.pop_back()) put(spare_.back());
  reserved_[begin] = {bytes, bytes};
  const MemoryAccess access{kOnDevice, context_.device(), kReadWrite};
  check_driver(driver().cuMemSetAccess(base, bytes, &access, 1), "cuMemSetAccess");
  return begin;
}

void Pages::unmap(std::byte* data, size_t bytes) {
  context_.bind();
  give_up_old(true);
  give_up(data, bytes);
  for (std::byte* at = data; at < data + bytes; at += page_) spare_.push_back(mapped_.extract(at).mapped());
}

void Pages::release_spare() {
  context_.bind();
  if (!spare_.empty()) give_up_old(true);
  for (PageHandle page : spare_) driver().cuMemRelease(page);
  held_ -= spare_.size() * page_;
  spare_.clear();
}

// Addresses go with the last page of those that were reserved together.
void Pages::give_up(std::byte* data, size_t bytes) {
  driver().cuMemUnmap(address_of(data), bytes);
  auto range = std::prev(reserved_.upper_bound(data));
  if ((range->second.mapped -= bytes) > 0) return;
  driver().cuMemAddressFree(address_of(range->first), range->second.bytes);
  reserved_.erase(range);
}

// A driver may wait for the device here, so not while that waits for the host.
void Pages::give_up_old(bool all) {
  if (!all && context_.awaits_host()) return;
  std::erase_if(old_, [&](const Old& old) {
    const bool done = std::all_of(old.pending.begin(), old.pending.end(), [](const Event& event) { return event.stream->query(event); });
    if (all || done) give_up(old.data, old.bytes);
    return all || done;
  });
}

}  // namespace rz::cuda
