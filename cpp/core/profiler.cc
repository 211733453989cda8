#include "core/profiler.h"

#include <algorithm>

#include "core/allocator.h"
#include "core/error.h"

namespace rz {

void Profiler::start(size_t capacity) {
  if (is_recording()) fail("ERR_PROFILE", "a profile is being recorded already");
  clear();
  capacity_ = capacity;
  started_ = clock_now();
  recording_.store(true, std::memory_order_relaxed);
}

void Profiler::stop() {
  recording_.store(false, std::memory_order_relaxed);
  while (!open_.empty()) end(open_.back());
}

void Profiler::clear() {
  names_.clear();
  index_.clear();
  spans_.clear();
  open_.clear();
  dropped_ = 0;
}

int32_t Profiler::begin(const std::string& kind, const std::string& label) {
  if (!is_recording()) return -1;
  if (spans_.size() == capacity_) return ++dropped_, -1;
  auto number = static_cast<int32_t>(spans_.size());
  spans_.push_back({intern(kind), label.empty() ? -1 : intern(label), clock_now(), 0, memory(), {}});
  open_.push_back(number);
  return number;
}

// A span of an earlier profile, or one that was closed, is nothing to end.
void Profiler::end(int32_t span) {
  auto found = std::find(open_.begin(), open_.end(), span);
  if (found == open_.end()) return;
  open_.erase(found);
  Span& ended = spans_[static_cast<size_t>(span)];
  ended.after = memory();
  ended.end = clock_now();
}

int32_t Profiler::intern(const std::string& name) {
  auto [entry, is_new] = index_.try_emplace(name, static_cast<int32_t>(names_.size()));
  if (is_new) names_.push_back(name);
  return entry->second;
}

std::array<int64_t, kMemoryKinds> Profiler::memory() const { return allocator_->stats().current; }

}  // namespace rz
