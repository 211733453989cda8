#include "core/arena.h"

#include <algorithm>

namespace rz {
namespace {

// The whole pages of [data, data + bytes).
std::pair<std::byte*, std::byte*> pages_of(std::byte* data, size_t bytes, size_t page) {
  const auto first = reinterpret_cast<uintptr_t>(data), begin = (first + page - 1) / page * page, end = (first + bytes) / page * page;
  return {data + (begin - first), data + (std::max(begin, end) - first)};
}

}  // namespace

void merge_events(std::vector<Event>& events, const std::vector<Event>& others) {
  for (const Event& other : others) {
    auto same = std::find_if(events.begin(), events.end(), [&](const Event& e) { return e.stream == other.stream; });
    if (same == events.end()) events.push_back(other);
    else same->position = std::max(same->position, other.position);
  }
}

void Arena::add(std::byte* base, size_t bytes, std::vector<Event> pending) {
  ranges_[base] = bytes;
  insert(base, {bytes, 0, std::move(pending)});
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
    merge_events(free.pending, after.pending);
  }
  auto previous = free_.lower_bound(data);
  if (previous != free_.begin() && (--previous)->first + previous->second.bytes == data && previous->first >= range) {
    data = previous->first;
    Free before = erase(previous);
    free.bytes += before.bytes, free.backed += before.backed;
    merge_events(free.pending, before.pending);
  }
  insert(data, std::move(free));
}

size_t Arena::free_pages(size_t page) const {
  size_t bytes = 0;
  for (const auto& [data, free] : free_) {
    auto [begin, end] = pages_of(data, free.bytes, page);
    bytes += static_cast<size_t>(end - begin);
  }
  return bytes;
}

size_t Arena::cut(size_t page, size_t bytes, std::vector<Block>& out) {
  std::vector<std::byte*> largest;
  for (auto fit = by_size_.rbegin(); fit != by_size_.rend() && fit->first >= page; ++fit) largest.push_back(fit->second);
  size_t got = 0;
  for (std::byte* data : largest) {
    if (got >= bytes) break;
    auto at = free_.find(data);
    auto [begin, end] = pages_of(data, at->second.bytes, page);
    end = begin + std::min(static_cast<size_t>(end - begin), bytes - got);
    if (begin == end) continue;
    Free free = erase(at);
    auto range = std::prev(ranges_.upper_bound(data));
    std::byte* range_end = range->first + range->second;
    if (range->first < begin) range->second = static_cast<size_t>(begin - range->first);
    else ranges_.erase(range);
    if (end < range_end) ranges_[end] = static_cast<size_t>(range_end - end);
    auto keep = [&](std::byte* from, std::byte* to) {
      const auto size = static_cast<size_t>(to - from);
      if (size > 0) insert(from, {size, std::min(size, free.backed), free.pending});
    };
    keep(data, begin);
    keep(end, data + free.bytes);
    got += static_cast<size_t>(end - begin);
    out.push_back({begin, static_cast<size_t>(end - begin), std::move(free.pending)});
  }
  return got;
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
