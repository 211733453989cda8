// Sizes of the messages between ranks of several hosts, which dry runs count too.
#pragma once
#include <cstddef>
#include <cstdint>

#include "comm/host_id.h"
#include "comm/shm_limits.h"

namespace rz::comm {

// What precedes a message from one rank to another.
struct Notice {
  uint64_t sequence;
  int64_t numel;
  uint64_t dtype;
};

// Bytes of all ranks' pieces together; the same on every rank, since pieces are messages. Where every rank is alone on its host,
// nobody needs a mailbox.
inline size_t piece_bytes(const HostLayout& layout) { return layout.hosts() == layout.size() ? size_t{8} << 20 : kHalf; }

}  // namespace rz::comm
