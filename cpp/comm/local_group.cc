#include "comm/local_group.h"

#include "core/cpu_stream.h"

namespace rz::comm {

std::shared_ptr<ProcessGroup> LocalGroup::split(const std::vector<int>& members) {
  check_members(members);
  return std::make_shared<LocalGroup>(name(), ranks()[0], allocate_);
}

void LocalGroup::copy(const char* operation, const Operand& out, const Operand& in, Stream* stream) {
  if (out.data == in.data && out.dtype == in.dtype) return;
  static_cast<CpuStream*>(stream)->enqueue(operation, [out, in] {
    describe(out.work());
    cast_copy(out.data, out.dtype, in.data, in.dtype, in.numel);
  });
}

void LocalGroup::do_reduce_scatter(Operand out, Operand in, ReduceOp op, bool accumulate, Stream* stream) {
  static_cast<CpuStream*>(stream)->enqueue("reduce_scatter", [out, in, op, accumulate] {
    describe(in.work());
    const void* source = in.data;
    reduce(out.data, out.dtype, &source, in.dtype, 1, out.numel, op, accumulate);
  });
}

}  // namespace rz::comm
