// Memory of flat buffers: one piece for all units, which every rank of a group maps whole. Each rank writes its part, and
// reads the others' where they are.
import type { ProcessGroup } from '../../distributed/process_group.ts';
import { dtypeNumber, type FloatDType } from '../../tensor/dtype.ts';
import { communicationStream, onStream } from '../../tensor/streams.ts';
import { type MemoryKind, memoryKindNumber, Tensor } from '../../tensor/tensor.ts';

/** A tensor in memory that the ranks of `group` can read; private when the group has one rank. */
export function sharedTensor(group: ProcessGroup, numel: number, dtype: FloatDType, kind: MemoryKind): Tensor {
  if (group.size === 1) return Tensor.empty([numel], dtype, kind);
  return new Tensor(group.allocateShared(numel, dtypeNumber(dtype), memoryKindNumber(kind)), [numel], dtype);
}

/**
 * Buffers of the given numbers of elements, the same on every rank of `group`: what one rank writes the others see.
 * Private when the group has one rank. Uninitialised, without pages. Collective; blocks.
 */
export function wholeTensors(
  group: ProcessGroup,
  numels: readonly number[],
  dtype: FloatDType,
  kind: MemoryKind,
): Tensor[] {
  return onStream(communicationStream(), () => {
    if (group.size === 1) return numels.map((numel) => Tensor.empty([numel], dtype, kind));
    const total = numels.reduce((sum, numel) => sum + numel, 0);
    using whole = new Tensor(group.allocateWhole(total, dtypeNumber(dtype), memoryKindNumber(kind)), [total], dtype);
    let offset = 0;
    return numels.map((numel) => {
      const part = whole.slice(offset, [numel]);
      offset += numel;
      return part;
    });
  });
}
