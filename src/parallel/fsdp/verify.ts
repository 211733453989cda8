// Whether replicas hold the same shards.
import { createHash } from 'node:crypto';
import { allGatherJson } from '../../distributed/exchange.ts';
import type { ProcessGroup } from '../../distributed/process_group.ts';
import type { Module } from '../../nn/module.ts';
import type { FsdpUnit } from './unit.ts';

// Of one parameter's elements on this rank.
type Digests = Record<string, string>;

/** A parameter by its place in the model, and on which ranks it differs. */
type Difference = readonly [index: number, text: string];

/**
 * Throws the same error on every rank of `world` where a replica differs: of all shards' differences that of the first parameter
 * in the order of `model`. Collective; blocks.
 */
export async function verifyReplicas(model: Module, units: readonly FsdpUnit[], world: ProcessGroup): Promise<void> {
  const order = new Map([...model.parameters()].map(({ name }, index) => [name, index] as const));
  const found = first(allGatherJson(world, await ownDifference(units, order)));
  if (found) throw new Error(`replicas differ: ${found[1]}`);
}

/** The first of this rank's shards, or null. */
async function ownDifference(
  units: readonly FsdpUnit[],
  order: ReadonlyMap<string, number>,
): Promise<Difference | null> {
  const differences: Difference[] = [];
  for (const { buckets } of units) {
    for (const bucket of buckets) {
      const { replicate } = bucket.groups;
      if (replicate.size === 1) continue;
      const own: Digests = {};
      for (const { parameter, at, length } of bucket.ranges()) {
        using part = bucket.shard.slice(at, [length]);
        const values = await part.data();
        const bytes = new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
        own[parameter.name] = createHash('sha256').update(bytes).digest('hex');
      }
      differences.push(...differing(allGatherJson(replicate, own), replicate.ranks, order));
    }
  }
  return first(differences);
}

function* differing(
  all: readonly Digests[],
  ranks: readonly number[],
  order: ReadonlyMap<string, number>,
): Generator<Difference> {
  for (const name of Object.keys(all[0]!)) {
    const other = all.findIndex((theirs) => theirs[name] !== all[0]![name]);
    if (other > 0) yield [order.get(name)!, `${name} is not the same on ranks ${ranks[0]} and ${ranks[other]}`];
  }
}

/** Of the least index; among equals the first. */
function first(differences: readonly (Difference | null)[]): Difference | null {
  return differences.reduce((least, one) => (one && (!least || one[0] < least[0]) ? one : least), null);
}
