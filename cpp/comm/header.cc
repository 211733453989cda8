#include "comm/header.h"

#include <algorithm>
#include <sstream>
#include <utility>

namespace rz::comm {
namespace {

constexpr const char* kOperationNames[] = {"?", "broadcast", "scatter", "all_reduce", "all_gather", "reduce_scatter", "barrier", "all_to_all"};

}  // namespace

Header header_of_call(uint64_t sequence, Operation operation, int64_t numel, DType in, DType out, int root, ReduceOp reduce) {
  Header h{};
  h.sequence = sequence;
  h.numel = numel;
  h.segment = -1;
  h.root = root;
  h.operation = static_cast<uint8_t>(operation);
  h.reduce = static_cast<uint8_t>(reduce);
  h.in_dtype = static_cast<uint8_t>(in);
  h.out_dtype = static_cast<uint8_t>(out);
  return h;
}

std::string describe(const Header& h) {
  Operation operation = static_cast<Operation>(h.operation);
  std::ostringstream text;
  text << kOperationNames[std::min<int>(h.operation, 7)];
  if (operation == Operation::Barrier) return text.str();
  text << "(";
  if (operation != Operation::AllToAll) text << h.numel << " × ";
  text << name_of(static_cast<DType>(h.in_dtype));
  if (h.out_dtype != h.in_dtype) text << " → " << name_of(static_cast<DType>(h.out_dtype));
  if (operation == Operation::AllReduce || operation == Operation::ReduceScatter) text << ", " << name_of(static_cast<ReduceOp>(h.reduce));
  if (operation == Operation::Broadcast || operation == Operation::Scatter) text << ", root " << h.root;
  text << ")";
  return text.str();
}

bool same_call(const Header& a, const Header& b) {
  if (a.sequence != b.sequence || a.operation != b.operation || a.numel != b.numel || a.root != b.root) return false;
  if (a.reduce != b.reduce || a.out_dtype != b.out_dtype) return false;
  return static_cast<Operation>(a.operation) == Operation::Scatter || a.in_dtype == b.in_dtype;  // only root knows its input
}

std::string difference(const Header& own, int rank, const Header& other, int peer) {
  std::string first = describe(own), second = describe(other);
  if (rank > peer) std::swap(rank, peer), std::swap(first, second);
  return "is " + first + " on rank " + std::to_string(rank) + " but " + second + " on rank " + std::to_string(peer);
}

}  // namespace rz::comm
