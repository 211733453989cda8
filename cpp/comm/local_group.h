// The group of one rank: collectives are casts and copies on the stream. Needs no store and no sockets.
#pragma once
#include <functional>

#include "comm/process_group.h"

namespace rz::comm {

class LocalGroup final : public ProcessGroup {
 public:
  using Allocate = std::function<std::shared_ptr<Storage>(size_t bytes, Stream* home, MemoryKind kind, bool populate)>;
  LocalGroup(std::string name, int world_rank, Allocate allocate) : ProcessGroup(std::move(name), {world_rank}, 0), allocate_(std::move(allocate)) {}

  const char* backend() const override { return "local"; }
  bool can_map() const override { return true; }
  std::shared_ptr<Storage> allocate_shared(size_t bytes, Stream* home, MemoryKind kind, bool populate) override {
    return allocate_(bytes, home, kind, populate);
  }
  std::shared_ptr<Storage> allocate_whole(size_t bytes, Stream* home, MemoryKind kind) override { return allocate_(bytes, home, kind, false); }
  std::shared_ptr<ProcessGroup> split(const std::vector<int>& ranks) override;

 protected:
  void do_broadcast(Operand, int, Stream*) override {}
  void do_scatter(Operand out, Operand in, int, Stream* stream) override { copy("scatter", out, in, stream); }
  void do_all_reduce(Operand, ReduceOp, Stream*) override {}
  void do_all_gather(Operand out, Operand in, Stream* stream) override { copy("all_gather", out, in, stream); }
  void do_reduce_scatter(Operand out, Operand in, ReduceOp op, bool accumulate, Stream* stream) override;
  void do_all_to_all(Operand out, Operand in, Counts, Counts, Stream* stream) override { copy("all_to_all", out, in, stream); }
  void do_send(Operand, int, Stream*) override {}  // unreachable: there is no other rank
  void do_recv(Operand, int, Stream*) override {}
  void do_barrier(Stream*) override {}

 private:
  static void copy(const char* operation, const Operand& out, const Operand& in, Stream* stream);
  Allocate allocate_;
};

}  // namespace rz::comm
