// Before the first transfer the ranks compare what they are about to send and receive. Where PyTorch would hang, all ranks
// throw the same error.
import { createHash } from 'node:crypto';
import { allGatherJson } from '../../distributed/exchange.ts';
import type { ProcessGroup } from '../../distributed/process_group.ts';
import type { PlannedUnit } from './units.ts';

export interface ManifestEntry {
  name: string;
  shape: readonly number[];
  dtype: string;
  requiresGrad: boolean;
  /** The unit that holds it. */
  unit: string;
}

/** What this rank is about to wrap. */
export function manifestOf(planned: readonly PlannedUnit[]): ManifestEntry[] {
  return planned.flatMap(({ name: unit, parameters }) =>
    parameters.map(({ name, shape, dtype, quantized, requiresGrad }) => ({
      name,
      shape,
      dtype: quantized?.storage ?? dtype,
      requiresGrad,
      unit,
    })),
  );
}

const line = (entry: ManifestEntry): string =>
  `${entry.name} [${entry.shape}] ${entry.dtype}${entry.requiresGrad ? '' : ', frozen,'} in ${entry.unit || 'the root'}`;

/**
 * Throws the same error on every rank when manifests differ: the first differing entry and both sides. A rank that could
 * not make a manifest gives its `problem`, which then is everyone's. Collective; waits.
 */
export function compareManifests(group: ProcessGroup, entries: readonly ManifestEntry[], problem = ''): void {
  const text = entries.map(line).join('\n');
  const digest = createHash('sha256').update(text).digest('hex');
  // The manifests themselves are long, and are exchanged only when they differ.
  const states = group.size === 1 ? [[digest, problem] as const] : allGatherJson(group, [digest, problem]);
  const failed = states.findIndex(([, problem]) => problem !== '');
  if (failed >= 0)
    throw new Error(
      group.rank === failed ? problem : `rank ${group.ranks[failed]} could not be wrapped: ${states[failed]![1]}`,
    );
  if (states.every(([theirs]) => theirs === digest)) return;
  const all = allGatherJson(group, text);
  const reference = all[0]!.split('\n');
  for (const [rank, theirs] of all.entries()) {
    if (theirs === all[0]) continue;
    const other = theirs.split('\n');
    const index = reference.findIndex((entry, i) => entry !== other[i]);
    const at = index < 0 ? reference.length : index;
    throw new Error(
      `FSDP: the models of ranks 0 and ${group.ranks[rank]} differ. First difference, entry ${at}: ` +
        `rank 0 has ${reference[at] ?? 'no more parameters'}; rank ${group.ranks[rank]} has ${other[at] ?? 'no more parameters'} ` +
        `(${reference.length} and ${other.length} entries)`,
    );
  }
}
