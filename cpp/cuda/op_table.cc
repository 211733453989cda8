// Enters every op that has a kernel here into the table by which callers find it: those whose header declares
// `cuda::run(const Op&, CudaStream&)`. One that is declared and not defined does not link.
#include "ops/all.h"
#include "ops/dispatch.h"
#include "ops/work.h"
#include "cuda/backend.h"
#include "cuda/stream.h"

namespace rz::cuda {

template <class Op>
concept HasKernel = requires(const Op& op, CudaStream& stream) { run(op, stream); };

void fill_op_table() {
  AllOps::each([]<class Op>() {
    if constexpr (HasKernel<Op>) {
      enqueue<Op> = [](const Op& op, Stream& stream) {
        auto& queue = static_cast<CudaStream&>(stream);
        queue.enqueue(Op::name, [&] {
          if (TaskRecord* record = current_task()) record->work = work_on_device(op);
          run(op, queue);
        });
      };
    }
  });
}

}  // namespace rz::cuda
