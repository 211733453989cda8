// What goes from rank 0 to the others besides parameters: which of them are tied, and buffers.
import { broadcastJson } from '../../distributed/exchange.ts';
import { dist } from '../../distributed/index.ts';
import type { Module } from '../../nn/module.ts';
import { applyTies, tiedNames } from '../../nn/tied.ts';
import { onCommunicationStream } from '../../tensor/streams.ts';
import type { ShardGroups } from './groups.ts';

/** Rank 0's table of tied names is authoritative: a file may untie what the config ties. Collective; blocks. */
export function followTies(module: Module): void {
  const { group } = dist;
  if (group.size === 1) return;
  const table = broadcastJson(group, tiedNames(module));
  for (const change of applyTies(module, table)) console.warn(`rankzero: rank ${group.rank} follows rank 0: ${change}`);
}

/** Everyone's buffers are those of rank 0. Collective; enqueues. */
export function syncBuffers(module: Module, { grid, replicate }: ShardGroups): void {
  onCommunicationStream(() => {
    for (const [, tensor] of module.namedBuffers()) {
      if (grid.size > 1 && replicate.rank === 0) grid.broadcast(tensor.handle, 0);
      if (replicate.size > 1) replicate.broadcast(tensor.handle, 0);
    }
  });
}
