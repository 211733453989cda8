// What a rank says of the collective that it enters; ranks compare it before any data moves.
#pragma once
#include <cstdint>
#include <string>

#include "comm/reduce.h"

namespace rz::comm {

enum class Operation : uint8_t { Broadcast = 1, Scatter, AllReduce, AllGather, ReduceScatter, Barrier, AllToAll };

struct Header {
  uint64_t sequence;
  int64_t numel;    // of one rank's part
  int64_t offset;   // bytes into `segment` of the memory that peers may read
  int32_t segment;  // -1: private memory, read through the mailbox
  int32_t root;
  uint8_t operation, reduce, in_dtype, out_dtype;
};

// Of private memory.
Header header_of_call(uint64_t sequence, Operation operation, int64_t numel, DType in, DType out, int root, ReduceOp reduce);
// "all_reduce(4 × float32, sum)"
std::string describe(const Header& header);
// Where memory is does not count, nor what only a root knows.
bool same_call(const Header& a, const Header& b);
// "is … on rank 0 but … on rank 1", the lower rank first. Ranks are of the world.
std::string difference(const Header& own, int rank, const Header& other, int peer);

}  // namespace rz::comm
