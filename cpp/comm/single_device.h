// A group of one rank: what its collectives leave to do is copies.
#pragma once
#include "comm/device_collectives.h"
#include "ops/op.h"

namespace rz::comm {

View view_of(const Operand& operand);
// Casts where the dtypes differ.
void copy_on_device(const Operand& to, const Operand& from, Stream* stream);

class SingleDevice final : public DeviceCollectives {
 public:
  const char* backend() const override { return "local"; }
  void broadcast(const Operand&, int, Stream*) override {}
  void scatter(const Operand& out, const Operand& in, int, Stream* stream) override { copy_on_device(out, in, stream); }
  void all_reduce(const Operand&, ReduceOp, Stream*) override {}
  void all_gather(const Operand& out, const Operand& in, Stream* stream) override { copy_on_device(out, in, stream); }
  void reduce_scatter(const Operand& out, const Operand& in, ReduceOp op, bool accumulate, Stream* stream) override;
  void all_to_all(const Operand& out, const Operand& in, const Counts&, const Counts&, Stream* stream) override { copy_on_device(out, in, stream); }
  void send(const Operand&, int, Stream*) override {}
  void recv(const Operand&, int, Stream*) override {}
  void barrier(Stream*) override {}
};

}  // namespace rz::comm
