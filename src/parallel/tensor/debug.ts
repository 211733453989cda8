// The debug mode of tensor parallelism: all ranks of a group must get the same batch, or their sums mean nothing.
import { createHash } from 'node:crypto';
import type { ProcessGroup } from '../../distributed/process_group.ts';
import { settings } from '../../environment.ts';
import type { Tensor } from '../../tensor/tensor.ts';

/** The check that RANKZERO_DEBUG=1 asks for; undefined without it. Collective; blocks. */
export function inputCheck(group: ProcessGroup): ((ids: Tensor) => void) | undefined {
  if (!settings.debug || group.size === 1) return undefined;
  return (ids) => {
    const values = BigInt64Array.from((ids.hostValues ?? ids.dataSync()) as ArrayLike<bigint>, BigInt);
    const own = createHash('sha256').update(new Uint8Array(values.buffer)).digest();
    const all = group.allGatherBytes(own).map((bytes) => Buffer.from(bytes));
    const other = all.findIndex((theirs) => !theirs.equals(all[0]!));
    if (other < 0) return;
    throw new Error(
      `ranks ${group.ranks[0]} and ${group.ranks[other]} share each layer (tensor parallelism) but were given different inputIds; ` +
        'give all ranks of a tensor-parallel group the same batch: state.dpRank of state.dpSize',
    );
  };
}
