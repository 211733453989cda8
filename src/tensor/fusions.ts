// What a device runs as one op where others run several. This table is the one place that says so: ops ask it for the device of
// their operands, and no model knows of it. The CPU fuses nothing of this kind, since the bits of its results are a contract.
import { processState } from '../core/context.ts';
import { settings } from '../environment.ts';
import type { Device } from './tensor.ts';

/** @internal With what each does; RANKZERO_FUSIONS names those that a device has. */
export const fusions = {
  sums: 'the op that makes the last term of a sum of activations or gradients adds the others to it',
  casts: 'the optimizer writes its shard in the compute dtype beside the masters, so that a gather casts nothing',
  projections: 'linears of one input whose weights lie one behind the other (q, k and v, gate and up) are one GEMM',
  sinks: 'the loss writes the gradient of the head where backward would, if nothing else is there',
} as const;

/** @internal */
export type Fusion = keyof typeof fusions;

/** @internal */
export const fusionNames: readonly Fusion[] = Object.keys(fusions) as Fusion[];

const nothing: ReadonlySet<Fusion> = new Set();

interface Table {
  cpu: ReadonlySet<Fusion>;
  /** Undefined until it is asked for. */
  cuda: ReadonlySet<Fusion> | undefined;
  meta: ReadonlySet<Fusion>;
}

const table: Table = processState<Table>('fusions', 'what each device runs as one op', {
  cpu: nothing,
  cuda: undefined,
  meta: nothing,
});

/** @internal What `device` runs as one op. */
export function fusionsOf(device: Device): ReadonlySet<Fusion> {
  if (device === 'cuda') table.cuda ??= parseFusions(settings.fusions);
  return table[device]!;
}

/** @internal Whether `device` runs these as one op. */
export function fuses(device: Device, fusion: Fusion): boolean {
  return fusionsOf(device).has(fusion);
}

/** @internal What device cuda fuses from now on: for measurements of each alone. */
export function setFusions(wanted: Iterable<Fusion>): void {
  table.cuda = new Set(wanted);
}

/** @internal All of them unless `text` names some, between commas; `none` is none. */
export function parseFusions(text: string | undefined): ReadonlySet<Fusion> {
  if (text === undefined) return new Set(fusionNames);
  if (text === 'none') return nothing;
  const names = text.split(',');
  for (const name of names)
    if (!Object.hasOwn(fusions, name))
      throw new RangeError(`RANKZERO_FUSIONS: there is no "${name}"; it is none, or some of ${fusionNames.join(',')}`);
  return new Set(names as Fusion[]);
}
