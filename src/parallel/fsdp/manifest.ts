// Before the first transfer the ranks compare what they are about to send and receive. Where PyTorch would hang, all ranks
// throw the same error.
import type { ProcessGroup } from '../../distributed/process_group.ts';

export interface ManifestEntry {
  name: string;
  shape: readonly number[];
  dtype: string;
  requiresGrad: boolean;
  /** The unit that holds it. */
  unit: string;
}

const line = (entry: ManifestEntry): string =>
  `${entry.name} [${entry.shape}] ${entry.dtype}${entry.requiresGrad ? '' : ', frozen,'} in ${entry.unit || 'the root'}`;

/**
 * Throws the same error on every rank when manifests differ: the first differing entry and both sides. A rank that could
 * not make a manifest gives its `problem`, which then is everyone's. Collective; waits.
 */
export function compareManifests(group: ProcessGroup, entries: readonly ManifestEntry[], problem = ''): void {
  const problems =
    group.size === 1
      ? [problem]
      : group.allGatherBytes(new TextEncoder().encode(problem)).map((bytes) => new TextDecoder().decode(bytes));
  const failed = problems.findIndex((text) => text !== '');
  if (failed >= 0)
    throw new Error(
      group.rank === failed ? problem : `rank ${group.ranks[failed]} could not be wrapped: ${problems[failed]}`,
    );
  if (group.size === 1) return;
  const lines = entries.map(line);
  const all = group
    .allGatherBytes(new TextEncoder().encode(lines.join('\n')))
    .map((bytes) => new TextDecoder().decode(bytes));
  const reference = all[0]!.split('\n');
  for (const [rank, text] of all.entries()) {
    if (text === all[0]) continue;
    const other = text.split('\n');
    const index = reference.findIndex((entry, i) => entry !== other[i]);
    const at = index < 0 ? reference.length : index;
    throw new Error(
      `FSDP: the models of ranks 0 and ${group.ranks[rank]} differ. First difference, entry ${at}: ` +
        `rank 0 has ${reference[at] ?? 'no more parameters'}; rank ${group.ranks[rank]} has ${other[at] ?? 'no more parameters'} ` +
        `(${reference.length} and ${other.length} entries)`,
    );
  }
}
