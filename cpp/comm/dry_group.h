// A process group without peers, for dry runs: any size, rank and hosts, and collectives that only count. Counted is what this
// rank sends: within its host, and to other hosts. With n ranks, L of them on this host, H hosts.
//
// On one host, whatever carries it (ring, pairwise, shared memory):
//   all_gather      (n − 1)/n of the output, in its dtype    reduce_scatter  (n − 1)/n of the input
//   all_reduce      2 (n − 1)/n of the tensor                send            the tensor
//   broadcast       the tensor, at the root                  scatter         the other ranks' parts, at the root
//   all_to_all      the other ranks' parts of the input
//
// On several hosts, host memory goes as cpp/comm/hosts carries it, to the byte. To other hosts, with the greetings (a Header for
// each rank that one meets) and without the challenge of a new connection; g: ranks whose parts come to this one:
//   all_gather      its part to each of H − 1 takers         reduce_scatter  a sum of the host for each of g
//   all_reduce      up to 32 KiB: the tensor to H − 1 hosts, by the first rank of each host; else by as many ranks as the host
//                   with the fewest has, of the H · fewest equal ranges of each piece: the sums of H − 1, then H − 1 times its own
//   broadcast       the tensor to the next host of a chain   scatter         the parts of ranks of other hosts, at the root
//   all_to_all      a count and a part for each rank         send            a Notice and the tensor
// Within the host, what its neighbours read of what it has or brought: all_gather 1 + g parts by each of L − 1, reduce_scatter
// n − 1 − g parts, all_reduce what they sum and take of it, broadcast and scatter L − 1 times the tensor or a part.
//
// On devices of several hosts: a ring through all of them, as on one host, of whose n links H lead to another host. Scatter,
// all_to_all and send go straight to each rank. NCCL may take trees or more rings instead, which need as much or less.
#pragma once
#include <array>

#include "comm/device_collectives.h"
#include "comm/host_id.h"
#include "core/runtime.h"

namespace rz::comm {

enum class WireKind : uint8_t { Broadcast, Scatter, AllReduce, AllGather, ReduceScatter, AllToAll, Send, Barrier };
constexpr int kWireKinds = 8;

// Bytes that one call sends.
struct Sent {
  int64_t within = 0, between = 0;
};

// Of all groups of a world.
struct WireCounts {
  std::array<int64_t, kWireKinds> calls{};
  std::array<Sent, kWireKinds> bytes{};
  void add(WireKind kind, Sent sent);
};

class DryGroup final : public ProcessGroup {
 public:
  // `layout`: of these ranks, in their order.
  DryGroup(std::string name, std::vector<int> ranks, int rank, HostLayout layout, Runtime* runtime, std::shared_ptr<WireCounts> wire)
      : ProcessGroup(std::move(name), std::move(ranks), rank), layout_(std::move(layout)), runtime_(runtime), wire_(std::move(wire)) {}

  const char* backend() const override { return "dry"; }
  const char* device_backend() const override { return "dry"; }
  int hosts() const override { return layout_.hosts(); }
  int host_of(int rank) const override { return layout_.host_of(rank); }
  bool can_map() const override { return hosts() == 1; }  // as the group that it stands for
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
  void do_barrier(Stream*) override;
  std::unique_ptr<DeviceCollectives> make_devices(Stream*) override;

 private:
  friend class DryDevices;
  void count(WireKind kind, Sent sent);
  // Counted as a ring through all ranks.
  void count_ring(WireKind kind, int64_t bytes);
  // A message for each other rank, of `bytes_for(rank)`.
  template <class Bytes>
  Sent messages(Bytes bytes_for) const;
  Sent large_all_reduce(const Operand& tensor) const;
  // What a tensor has beyond this rank's part of it.
  int64_t others(const Operand& whole) const { return static_cast<int64_t>(whole.bytes()) / size() * (size() - 1); }
  int neighbours() const { return layout_.size_of(layout_.host_of(rank())) - 1; }

  HostLayout layout_;
  Runtime* runtime_;
  std::shared_ptr<WireCounts> wire_;
};

}  // namespace rz::comm
