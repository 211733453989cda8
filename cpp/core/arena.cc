#include "core/arena.h"

#include <algorithm>

namespace rz {
namespace {

void merge(std::vector<Event>& events, const std::vector<Event>& others) {
  for (const Event& other : others) {
    auto same = std::find_if(events.begin(), events.end(), [&](const Event& e) { return e.stream == other.stream; });
    if (same == events.end()) events.push_back(other);
    else same->position = std::max(same->position, other.position);
  }
}

}  // namespace

void Arena::add(std::byte* base, size_t bytes) {
  ranges_[base] = bytes;
  insert(base, {bytes, 0, {}});
}

bool Arena::take(size_t bytes, Block& block) {
  auto fit = by_size_.lower_bound({bytes, nullptr});
  if (fit == by_size_.end()) return false;
  auto at = free_.find(fit->second);
  std::byte* data = at->first;
  Free free = erase(at);
  if (free.bytes > bytes) {
    size_t backed = free.backed - std::min(free.backed, bytes);
    insert(data + bytes, {free.bytes - bytes, backed, free.pending});
  }
  used_ += bytes;
  block = {data, bytes, std::move(free.pending)};
  return true;
}

void Arena::release(Block block) {
  used_ -= block.bytes;
  Free free{block.bytes, block.bytes, std::move(block.pending)};
  std::byte* data = block.data;
  std::byte* range = range_of(data);
  auto next = free_.upper_bound(data);
  if (next != free_.end() && next->first == data + free.bytes && range_of(next->first) == range) {
    Free after = erase(next);
    free.bytes += after.bytes, free.backed += after.backed;
    merge(free.pending, after.pending);
  }
  auto previous = free_.lower_bound(data);
  if (previous != free_.begin() && (--previous)->first + previous->second.bytes == data && previous->first >= range) {
    data = previous->first;
    Free before = erase(previous);
    free.bytes += before.bytes, free.backed += before.backed;
    merge(free.pending, before.pending);
  }
  insert(data, std::move(free));
}

void Arena::insert(std::byte* data, Free free) {
  by_size_.insert({free.bytes, data});
  backed_free_ += free.backed;
  free_.emplace(data, std::move(free));
}

Arena::Free Arena::erase(FreeMap::iterator at) {
  by_size_.erase({at->second.bytes, at->first});
  backed_free_ -= at->second.backed;
  Free free = std::move(at->second);
  free_.erase(at);
  return free;
}

}  // namespace rz
