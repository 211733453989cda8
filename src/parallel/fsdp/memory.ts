// Memory of flat buffers, which every rank of a group maps whole. Each rank writes its part, and reads the others' where
// they are.
import type { ProcessGroup } from '../../distributed/process_group.ts';
import { dtypeNumber, type FloatDType } from '../../tensor/dtype.ts';
import { communicationStream, numLoadingStreams, onStream } from '../../tensor/streams.ts';
import { type MemoryKind, memoryKindNumber, Tensor } from '../../tensor/tensor.ts';

/** A tensor in memory that the ranks of `group` can read; private when the group has one rank. */
export function sharedTensor(group: ProcessGroup, numel: number, dtype: FloatDType, kind: MemoryKind): Tensor {
  if (group.size === 1) return Tensor.empty([numel], dtype, kind);
  return new Tensor(group.allocateShared(numel, dtypeNumber(dtype), memoryKindNumber(kind)), [numel], dtype);
}

/**
 * Buffers of the given numbers of elements, the same on every rank of `group`: what one rank writes the others see.
 * Private when the group has one rank. Uninitialised, without pages. Neighbours lie in different pieces of memory, since
 * writes through the descriptor of one piece wait for each other. Collective; blocks.
 */
export function wholeTensors(
  group: ProcessGroup,
  numels: readonly number[],
  dtype: FloatDType,
  kind: MemoryKind,
): Tensor[] {
  return onStream(communicationStream(), () => {
    if (group.size === 1) return numels.map((numel) => Tensor.empty([numel], dtype, kind));
    const numPieces = Math.min(numLoadingStreams, numels.length);
    const tensors: Tensor[] = [];
    for (let piece = 0; piece < numPieces; piece++) {
      const total = numels.reduce((sum, numel, i) => sum + (i % numPieces === piece ? numel : 0), 0);
      using whole = new Tensor(group.allocateWhole(total, dtypeNumber(dtype), memoryKindNumber(kind)), [total], dtype);
      let offset = 0;
      for (let i = piece; i < numels.length; i += numPieces) {
        tensors[i] = whole.slice(offset, [numels[i]!]);
        offset += numels[i]!;
      }
    }
    return tensors;
  });
}
