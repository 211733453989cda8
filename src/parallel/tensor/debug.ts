// The debug mode of tensor parallelism: all ranks of a group must get the same batch, or their sums mean nothing.
import { createHash } from 'node:crypto';
import type { ProcessGroup } from '../../distributed/process_group.ts';

/** The check that RANKZERO_DEBUG=1 asks for; undefined without it. */
export function inputCheck(group: ProcessGroup): ((ids: Int32Array) => void) | undefined {
  if (['', '0', undefined].includes(process.env.RANKZERO_DEBUG) || group.size === 1) return undefined;
  return (ids) => {
    const own = createHash('sha256').update(ids).digest();
    const all = group.allGatherBytes(own).map((bytes) => Buffer.from(bytes));
    const other = all.findIndex((theirs) => !theirs.equals(all[0]!));
    if (other < 0) return;
    throw new Error(
      `ranks ${group.ranks[0]} and ${group.ranks[other]} share each layer (tensor parallelism) but were given different inputIds; ` +
        'give all ranks of a tensor-parallel group the same batch: state.dpRank of state.dpSize',
    );
  };
}
