// Sizes of the shared-memory collectives.
#pragma once
#include <cstddef>

namespace rz::comm {

constexpr size_t kHalf = size_t{1} << 20;     // one half of a mailbox
constexpr size_t kSmall = size_t{32} << 10;   // up to here a mailbox beats reading in place, which costs a round more
constexpr size_t kPiece = size_t{2} << 20;   // of a large all-reduce in place: the peers' pieces too are still in the cache when copied
constexpr size_t kParcel = size_t{256} << 10; // one half of a channel's buffer

}  // namespace rz::comm
