#include "cpu/scratch.h"

namespace rz::cpu {
namespace {

constexpr int kSlots = 8;                           // buffers that a thread keeps
constexpr int64_t kKeptBytes = int64_t{32} << 20;   // and their size altogether
constexpr int64_t kAlignment = 64, kRounding = 4096;

struct Kept {
  void* data[kSlots] = {};
  int64_t bytes[kSlots] = {};
  int64_t total = 0;
  ~Kept() {
    for (void* p : data) std::free(p);
  }
};
thread_local Kept kept;

}  // namespace

Scratch::Scratch(int64_t bytes) {
  int best = -1;
  for (int i = 0; i < kSlots; ++i)
    if (kept.data[i] && kept.bytes[i] >= bytes && kept.bytes[i] <= 4 * bytes + (int64_t{1} << 16) &&
        (best < 0 || kept.bytes[i] < kept.bytes[best])) best = i;
  if (best >= 0) {
    data_ = std::exchange(kept.data[best], nullptr);
    bytes_ = kept.bytes[best];
    kept.total -= bytes_;
    return;
  }
  bytes_ = (bytes + kRounding - 1) / kRounding * kRounding;
  data_ = std::aligned_alloc(kAlignment, static_cast<size_t>(bytes_ ? bytes_ : kRounding));
  if (!data_) throw std::bad_alloc();
}

Scratch::~Scratch() {
  // Keep this buffer; the smallest kept one makes room.
  int slot = 0;
  for (int i = 0; i < kSlots; ++i) {
    if (!kept.data[i]) {
      slot = i;
      break;
    }
    if (kept.bytes[i] < kept.bytes[slot]) slot = i;
  }
  int64_t freed = kept.data[slot] ? kept.bytes[slot] : 0;
  if (kept.total - freed + bytes_ > kKeptBytes || freed > bytes_) {
    std::free(data_);
    return;
  }
  std::free(kept.data[slot]);
  kept.data[slot] = data_;
  kept.bytes[slot] = bytes_;
  kept.total += bytes_ - freed;
}

}  // namespace rz::cpu
