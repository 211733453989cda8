// Parameters of a sharded model into one file, unit by unit: rank 0 writes, and an error there is the same error everywhere.
import type { PretrainedWriter } from '../../checkpoint/save_pretrained.ts';
import { onAllRanks } from '../../distributed/agree.ts';
import { dist } from '../../distributed/index.ts';
import type { Parameter } from '../../nn/parameter.ts';
import type { Tensor } from '../../tensor/tensor.ts';
import { gatherPartsToFirst } from '../tensor/merge.ts';
import type { ShardGroups } from './groups.ts';
import type { FsdpUnit } from './unit.ts';

/**
 * Writes the parameters of `names`, under these names, to what `open` opens on rank 0; buckets that hold none of them are not gathered.
 * `what` says in errors what is done. Collective over all ranks.
 */
export async function saveParameters(
  what: string,
  names: ReadonlyMap<Parameter, string>,
  open: () => Promise<PretrainedWriter>,
  units: readonly FsdpUnit[],
  { shard, replicate, tensor }: ShardGroups,
): Promise<void> {
  const merges = shard.rank === 0 && replicate.rank === 0;
  const holdsFile = merges && (tensor?.rank ?? 0) === 0;
  const writer = await onAllRanks(dist.group, what, () => (holdsFile ? open() : undefined));
  await onAllRanks(dist.group, what, async () => {
    // Replicas hold the same shards: one shard group gathers.
    if (replicate.rank !== 0) return;
    let failure: unknown;
    const attempt = async (write: (to: PretrainedWriter) => unknown): Promise<void> => {
      if (!writer || failure !== undefined) return;
      try {
        await write(writer);
      } catch (error) {
        failure = error;
      }
    };
    const save = async (parameter: Parameter, part: Tensor): Promise<void> => {
      using whole = tensor ? gatherPartsToFirst(part, parameter.placement, tensor) : part.detach();
      await attempt((to) => to.write(names.get(parameter)!, whole!));
    };
    for (const { buckets } of units) {
      for (const bucket of buckets) {
        const wanted = bucket.layout.spans.filter(({ parameter }) => names.has(parameter));
        if (wanted.length === 0) continue;
        using full = bucket.gatherValues(); // after a failure too: the others gather
        if (!merges) continue;
        for (const { parameter, offset } of wanted) {
          using part = full.slice(offset, parameter.shape);
          await save(parameter, part);
        }
      }
      if (merges) await attempt((to) => to.drain());
    }
    for (const parameter of merges ? names.keys() : []) {
      if (parameter.owner) continue;
      using part = parameter.detach();
      await save(parameter, part);
    }
    try {
      if (failure !== undefined) throw failure;
      await writer?.finish();
    } catch (error) {
      await writer?.abort();
      throw error;
    }
  });
}
