#include "comm/single_device.h"

#include "ops/dispatch.h"
#include "ops/elementwise.h"

namespace rz::comm {

View view_of(const Operand& operand) { return {operand.data, operand.dtype, operand.numel}; }

void copy_on_device(const Operand& to, const Operand& from, Stream* stream) {
  if (to.numel == 0 || (to.data == from.data && to.dtype == from.dtype)) return;
  cuda::enqueue<Copy>(Copy{view_of(to), view_of(from)}, *stream);
}

void SingleDevice::reduce_scatter(const Operand& out, const Operand& in, ReduceOp, bool accumulate, Stream* stream) {
  if (!accumulate) return copy_on_device(out, in, stream);
  if (out.numel > 0) cuda::enqueue<Add>(Add{view_of(out), view_of(out), view_of(in)}, *stream);
}

}  // namespace rz::comm
