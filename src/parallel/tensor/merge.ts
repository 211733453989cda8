// From the parts of a tensor-parallel group to the whole parameter.
import type { ProcessGroup } from '../../distributed/process_group.ts';
import { native } from '../../native.ts';
import type { Placement } from '../../nn/placement.ts';
import { onCommunicationStream } from '../../tensor/streams.ts';
import { type MemoryKind, Tensor } from '../../tensor/tensor.ts';

/** Writes one rank's part where it belongs; padding is dropped. Enqueues on the current stream. */
function place(whole: Tensor, part: Tensor, placement: Placement): void {
  for (const { at, from, rows, length, stride } of placement.ranges(0, part.numel)) {
    native.copyRows(whole.handle, part.handle, rows, length, from, stride, at, length);
  }
}

/** The whole parameter of which `part` is this rank's, in `kind` of memory, on every rank of the group. Collective. */
export function gatherParts(part: Tensor, placement: Placement, group: ProcessGroup, kind: MemoryKind): Tensor {
  const whole = Tensor.empty(placement.fullShape, part.dtype, kind, part.device);
  onCommunicationStream(() => {
    if (placement.isWhole) {
      whole.copyFrom(part);
      return;
    }
    using all = Tensor.empty([group.size, part.numel], part.dtype, 'staging', part.device);
    group.allGather(all.handle, part.handle);
    for (let rank = 0; rank < group.size; rank += placement.copies) {
      using theirs = all.narrow(rank, 1);
      place(whole, theirs, placement.at(rank));
    }
  });
  return whole;
}

/** The same on rank 0 of the group alone; undefined elsewhere. Collective. */
export function gatherPartsToFirst(part: Tensor, placement: Placement, group: ProcessGroup): Tensor | undefined {
  return onCommunicationStream(() => {
    if (group.rank !== 0) {
      if (!placement.isWhole && placement.isFirst) group.send(part.handle, 0);
      return undefined;
    }
    const whole = Tensor.empty(placement.fullShape, part.dtype, 'staging', part.device);
    place(whole, part, placement);
    if (placement.isWhole) return whole;
    using theirs = Tensor.empty([part.numel], part.dtype, 'staging', part.device);
    for (let rank = placement.copies; rank < group.size; rank += placement.copies) {
      group.recv(theirs.handle, rank);
      place(whole, theirs, placement.at(rank));
    }
    return whole;
  });
}
