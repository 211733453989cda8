// Typed handles: a JavaScript number of (mark, kind, generation, slot). A stale handle or one of another kind throws. The mark
// is one bit that says something of the value to JavaScript: of a tensor, that it is on a device.
#pragma once
#include <cstdint>
#include <utility>
#include <vector>

#include "core/error.h"

namespace rz::binding {

enum class HandleKind : uint64_t { Tensor = 1, Event = 2, File = 3, Group = 4 };

constexpr const char* name_of(HandleKind kind) {
  constexpr const char* names[] = {"?", "tensor", "event", "file", "process group"};
  return names[static_cast<int>(kind)];
}

template <class T, HandleKind kKind>
class HandleTable {
 public:
  double insert(T value, bool marked = false) {
    uint64_t slot;
    if (free_.empty()) {
      slot = entries_.size();
      if (slot >= kSlots) fail("ERR_HANDLE", "too many live ", name_of(kKind), " handles");
      entries_.emplace_back();
    } else {
      slot = free_.back();
      free_.pop_back();
    }
    Entry& entry = entries_[slot];
    entry.value = std::move(value);
    entry.live = true;
    entry.kind = static_cast<uint64_t>(kKind) | (marked ? kMark : 0);
    return static_cast<double>(entry.kind << 48 | entry.generation << 24 | slot);
  }

  T& at(double handle) {
    T* value = find(handle);
    if (!value) fail("ERR_HANDLE", "this ", name_of(kKind), " was disposed, or the handle is not a ", name_of(kKind));
    return *value;
  }

  // Null where at() throws.
  T* find(double handle) {
    Entry* entry = entry_of(handle);
    return entry ? &entry->value : nullptr;
  }

  // Releasing twice is harmless: a finalizer may come after an explicit dispose.
  bool release(double handle) {
    Entry* entry = entry_of(handle);
    if (!entry) return false;
    [[maybe_unused]] T dead = std::move(entry->value);  // destroyed last: it may release other handles
    entry->value = T();
    entry->live = false;
    entry->generation = (entry->generation + 1) & 0xffffff;
    free_.push_back(static_cast<uint64_t>(handle) & 0xffffff);
    return true;
  }

  bool contains(double handle) { return find(handle) != nullptr; }
  size_t live() const { return entries_.size() - free_.size(); }

 private:
  static constexpr uint64_t kSlots = 1u << 24, kMark = 8;
  struct Entry {
    T value{};
    uint64_t generation = 0, kind = 0;
    bool live = false;
  };
  Entry* entry_of(double handle) {
    if (!(handle >= 0 && handle < 0x1p52)) return nullptr;
    uint64_t bits = static_cast<uint64_t>(handle), slot = bits & 0xffffff;
    if (slot >= entries_.size()) return nullptr;
    Entry& entry = entries_[slot];
    return entry.live && bits >> 48 == entry.kind && entry.generation == ((bits >> 24) & 0xffffff) ? &entry : nullptr;
  }
  std::vector<Entry> entries_;
  std::vector<uint64_t> free_;
};

}  // namespace rz::binding
