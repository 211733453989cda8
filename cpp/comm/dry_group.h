// A process group without peers, for dry runs: any size and rank, and collectives that only count. Counted is what this
// rank sends, by formulas that hold whatever carries it (ring, pairwise, shared memory):
//   all_gather      (n − 1)/n of the output, in its dtype    reduce_scatter  (n − 1)/n of the input
//   all_reduce      2 (n − 1)/n of the tensor                send            the tensor
//   broadcast       the tensor, at the root                  scatter         the other ranks' parts, at the root
//   all_to_all      the other ranks' parts of the input
#pragma once
#include <array>

#include "comm/process_group.h"
#include "core/runtime.h"

namespace rz::comm {

enum class WireKind : uint8_t { Broadcast, Scatter, AllReduce, AllGather, ReduceScatter, AllToAll, Send };
constexpr int kWireKinds = 7;

// Of all groups of a world.
struct WireCounts {
  std::array<int64_t, kWireKinds> calls{}, bytes{};
};

class DryGroup final : public ProcessGroup {
 public:
  DryGroup(std::string name, std::vector<int> ranks, int rank, Runtime* runtime, std::shared_ptr<WireCounts> wire)
      : ProcessGroup(std::move(name), std::move(ranks), rank), runtime_(runtime), wire_(std::move(wire)) {}

  const char* backend() const override { return "dry"; }
  const char* device_backend() const override { return "dry"; }
  bool can_map() const override { return true; }  // as the group that it stands for
  // Counted as a shared segment is.
  std::shared_ptr<Storage> allocate_shared(size_t bytes, Stream* home, MemoryKind kind, bool populate) override;
  std::shared_ptr<Storage> allocate_whole(size_t bytes, Stream* home, MemoryKind kind) override;
  std::shared_ptr<ProcessGroup> split(const std::vector<int>& members) override;
  // Every rank says what this one says.
  std::vector<std::string> all_gather_bytes(const std::string& bytes, Stream*) override {
    return std::vector<std::string>(static_cast<size_t>(size()), bytes);
  }
  std::string broadcast_bytes(const std::string& bytes, int, Stream*) override { return bytes; }

 protected:
  void do_broadcast(Operand tensor, int root, Stream*) override;
  void do_scatter(Operand out, Operand in, int root, Stream*) override;
  void do_all_reduce(Operand tensor, ReduceOp, Stream*) override;
  void do_all_gather(Operand out, Operand in, Stream*) override;
  void do_reduce_scatter(Operand out, Operand in, ReduceOp, bool accumulate, Stream*) override;
  void do_all_to_all(Operand out, Operand in, Counts send_counts, Counts, Stream*) override;
  void do_send(Operand tensor, int to, Stream*) override;
  void do_recv(Operand, int, Stream*) override {}
  void do_barrier(Stream*) override {}

 private:
  void count(WireKind kind, int64_t bytes);
  // What a tensor has beyond this rank's part of it.
  int64_t others(const Operand& whole) const { return static_cast<int64_t>(whole.bytes()) / size() * (size() - 1); }

  Runtime* runtime_;
  std::shared_ptr<WireCounts> wire_;
};

}  // namespace rz::comm
