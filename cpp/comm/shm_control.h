// The control segment of a group of ranks on one host: one slot a rank, one channel a pair, and the counts of
// all_to_all. All fields that another rank reads are atomic, or published by the release of `round` (slots, counts) or
// `sent` (channels).
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>

#include "comm/header.h"

namespace rz::comm {

struct alignas(128) Slot {
  std::atomic<uint32_t> round;     // the last round this rank published
  std::atomic<uint32_t> sleepers;  // threads asleep on `round`
  std::atomic<uint32_t> finished;  // low bits of the last collective this rank is done with
  std::atomic<int32_t> mailbox;    // segment of its mailbox, 0: none yet
  alignas(64) Header headers[2];   // by parity of the sequence number: a rank is at most one collective ahead
};

struct Parcel {
  uint64_t sequence;
  int64_t numel;  // of the whole message
  int64_t offset;
  int32_t segment;
  uint8_t dtype, direct;
};

// One direction between two ranks; at most two parcels are on the way.
struct alignas(128) Channel {
  std::atomic<uint32_t> sent, received;
  std::atomic<uint32_t> sleepers;  // on either word
  alignas(64) Parcel parcels[2];   // by parity of `sent`
};

struct alignas(128) Preamble {
  std::atomic<uint32_t> joined;
};

class Control {
 public:
  static size_t bytes(size_t ranks) { return counts_at(ranks) + 4 * ranks * ranks * sizeof(int64_t); }
  Control(std::byte* base, int ranks) : base_(base), ranks_(static_cast<size_t>(ranks)) {}
  bool valid() const { return base_ != nullptr; }
  Preamble& preamble() const { return *reinterpret_cast<Preamble*>(base_); }
  Slot& slot(int rank) const { return reinterpret_cast<Slot*>(base_ + sizeof(Preamble))[rank]; }
  Channel& channel(int from, int to) const {
    auto* first = reinterpret_cast<Channel*>(base_ + sizeof(Preamble) + ranks_ * sizeof(Slot));
    return first[static_cast<size_t>(from) * ranks_ + static_cast<size_t>(to)];
  }
  // What `rank` sends to each rank and then what it expects of each, by parity of the sequence number.
  int64_t* counts(int rank, uint64_t sequence) const {
    return reinterpret_cast<int64_t*>(base_ + counts_at(ranks_)) + (static_cast<size_t>(rank) * 2 + (sequence & 1)) * 2 * ranks_;
  }

 private:
  static size_t counts_at(size_t ranks) { return sizeof(Preamble) + ranks * sizeof(Slot) + ranks * ranks * sizeof(Channel); }
  std::byte* base_;
  size_t ranks_;
};

static_assert(std::atomic<uint32_t>::is_always_lock_free && sizeof(std::atomic<uint32_t>) == 4);

}  // namespace rz::comm
