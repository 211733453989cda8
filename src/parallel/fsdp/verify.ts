// Whether replicas hold the same shards.
import { createHash } from 'node:crypto';
import { allGatherJson } from '../../distributed/exchange.ts';
import type { ProcessGroup } from '../../distributed/process_group.ts';
import type { FsdpUnit } from './unit.ts';

// Of one parameter's elements on this rank.
type Digests = Record<string, string>;

/** Throws the same error on every rank of `world` where a replica differs. Collective; blocks. */
export async function verifyReplicas(units: readonly FsdpUnit[], world: ProcessGroup): Promise<void> {
  const problem = await firstDifference(units);
  const all = allGatherJson(world, problem);
  const found = all.find((text) => text !== '');
  if (found) throw new Error(`replicas differ: ${found}`);
}

async function firstDifference(units: readonly FsdpUnit[]): Promise<string> {
  let problem = '';
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
      const all = allGatherJson(replicate, own);
      if (problem !== '') continue; // the others exchange too
      problem = differing(all, replicate.ranks);
    }
  }
  return problem;
}

function differing(all: readonly Digests[], ranks: readonly number[]): string {
  for (const name of Object.keys(all[0]!)) {
    const other = all.findIndex((theirs) => theirs[name] !== all[0]![name]);
    if (other > 0) return `${name} is not the same on ranks ${ranks[0]} and ${ranks[other]}`;
  }
  return '';
}
