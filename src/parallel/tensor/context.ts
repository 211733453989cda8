// What the parallel layers of one model share.
import type { ProcessGroup } from '../../distributed/process_group.ts';

/** The tensor-parallel group of a transformed model. */
export interface TensorParallel {
  readonly group: ProcessGroup;
  readonly rank: number;
  readonly size: number;
  /** Whether the rows between the layers are divided too: norms and residuals work on this rank's rows alone. */
  sequenceParallel: boolean;
  /** Whether rank 0 alone holds the weights: FSDP must then send them. */
  readonly loadsFromRank0: boolean;
  /** Throws when the ranks of the group were given different token ids (RANKZERO_DEBUG=1). Collective; blocks. */
  readonly checkInputs?: ((ids: Int32Array) => void) | undefined;
}
