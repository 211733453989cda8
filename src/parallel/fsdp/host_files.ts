// Loading on several hosts: where the files that rank 0 loads from are on every host, each reads what it needs itself, and no weight
// crosses the network. That is found out and not believed: sizes, headers and blocks drawn anew for every run must agree. Values
// that a program changed on rank 0 are sent, in the dtype of the file where that loses nothing.
import { createHash, randomInt } from 'node:crypto';
import { hostname } from 'node:os';
import { groupOfRanks } from '../../distributed/device_mesh.ts';
import { allGatherJson, broadcastJson } from '../../distributed/exchange.ts';
import { dist } from '../../distributed/index.ts';
import type { ProcessGroup } from '../../distributed/process_group.ts';
import { settings } from '../../environment.ts';
import { type Handle, native } from '../../native.ts';
import { currentRecipe, type Parameter } from '../../nn/parameter.ts';
import { FloatSource, QuantizedRecipe } from '../../nn/quantized_recipe.ts';
import { FileRecipe, PartRecipe, type Recipe } from '../../nn/recipe.ts';
import { type DType, dtypeNumber, dtypeSize } from '../../tensor/dtype.ts';
import { numelOf, Tensor } from '../../tensor/tensor.ts';
import type { BucketShape } from './bucket.ts';
import type { BucketRecipes } from './fill.ts';
import type { ShardGroups } from './groups.ts';
import type { WeightSource } from './source.ts';
import type { PlannedUnit } from './units.ts';

const blockBytes = 4096;
const numBlocks = 64;

/** A file of rank 0, and what another host must find at its path. */
interface FileClaim {
  path: string;
  bytes: number;
  /** Where the blocks begin; the first is the file's beginning. */
  blocks: number[];
  digest: string;
}

/** Where the whole values of a parameter lie: number of the file, offset in bytes, dtype. */
type Place = readonly [file: number, byteOffset: number, dtype: DType];

interface Claims {
  files: FileClaim[];
  /** By parameter, in the order of the plan; null for values that are in no file. */
  places: (Place | null)[];
}

/** What this rank knows of rank 0's files. */
export class HostFiles {
  private readonly places: ReadonlyMap<Parameter, Place>;
  /** Open files of this host, by number; undefined where they are not the same on all hosts. */
  private readonly handles: readonly Handle[] | undefined;
  /** Ranks of this host that hold the same shards: the first of them reads for all. */
  readonly near: ProcessGroup | undefined;

  constructor(
    places: ReadonlyMap<Parameter, Place>,
    handles: readonly Handle[] | undefined,
    near: ProcessGroup | undefined,
  ) {
    this.places = places;
    this.handles = handles;
    this.near = near;
  }

  /** Recipes that read a bucket from files of this host; undefined where rank 0 must send. The same answer on every rank. */
  recipesOf({ layout }: BucketShape): BucketRecipes | undefined {
    const { handles } = this;
    if (!handles) return undefined;
    const recipes = new Map<Parameter, Recipe>();
    for (const { parameter } of layout.spans) {
      const place = this.places.get(parameter);
      if (!place) return undefined;
      const [file, byteOffset, dtype] = place;
      const { placement } = parameter;
      const whole = new FileRecipe(handles[file]!, byteOffset, dtype, numelOf(placement.fullShape));
      const { quantized } = parameter;
      if (quantized) recipes.set(parameter, new QuantizedRecipe(new FloatSource(whole), quantized.storage, placement));
      else recipes.set(parameter, placement.isWhole ? whole : new PartRecipe(whole, placement));
    }
    return recipes;
  }

  /** The dtype in which a bucket's values are sent to other hosts: the files' own where it is shorter and casts without a loss. */
  wireDtype({ layout, dtypes: { master } }: BucketShape): DType {
    const dtypes = new Set(layout.spans.map(({ parameter }) => this.places.get(parameter)?.[2]));
    const [dtype] = dtypes;
    const isShorter = dtype !== undefined && dtypeSize(dtype) < dtypeSize(master);
    return dtypes.size === 1 && isShorter && master === 'float32' ? dtype : master;
  }

  /** May be called as soon as the reads are enqueued. */
  close(): void {
    for (const handle of this.handles ?? []) native.fileClose(handle);
  }
}

/** Finds out which files all hosts have. Nothing on one host, and without syncModuleStates. Collective; blocks. */
export function findHostFiles(
  planned: readonly PlannedUnit[],
  source: WeightSource,
  groups: ShardGroups,
  isSynced: boolean,
): HostFiles {
  const world = dist.group;
  if (!isSynced || world.hosts === 1) return new HostFiles(new Map(), undefined, undefined);
  const parameters = planned.flatMap((unit) => unit.parameters);
  const claims = broadcastJson(world, claimsOf(parameters, source)); // in a dry run every rank's own
  const places = new Map(
    parameters.flatMap((parameter, i) => {
      const place = claims.places[i];
      return place ? [[parameter, place] as const] : [];
    }),
  );
  if (claims.files.length === 0) return new HostFiles(places, undefined, undefined);
  const { handles, problem } = openClaimed(claims.files, world.ranksOnHost[0] === world.rank);
  const problems = allGatherJson(world, problem === '' ? '' : `${hostname()}: ${problem}`);
  const first = problems.find((text) => text !== '');
  if (world.rank === 0 && !settings.quiet) {
    const what =
      first === undefined ? `each of ${world.hosts} hosts reads them itself` : `rank 0 sends them, since ${first}`;
    process.stderr.write(`rankzero: weights: ${what}\n`);
  }
  if (first !== undefined) {
    for (const handle of handles) native.fileClose(handle);
    return new HostFiles(places, undefined, undefined);
  }
  const { replicate } = groups;
  const here = replicate.ranksOnHost.map((rank) => replicate.ranks[rank]!);
  return new HostFiles(places, handles, here.length > 1 ? groupOfRanks(here) : undefined);
}

/** What rank 0 loads from. Parameters that are not read from a file have no place. */
function claimsOf(parameters: readonly Parameter[], source: WeightSource): Claims {
  const files: FileClaim[] = [];
  const numbers = new Map<Handle, number>();
  const places = parameters.map((parameter): Place | null => {
    const place = source.isHere && parameter.device !== 'meta' ? currentRecipe(parameter).place : undefined;
    if (!place) return null;
    let number = numbers.get(place.file);
    if (number === undefined) {
      number = files.push(claimOf(place.path, place.file)) - 1;
      numbers.set(place.file, number);
    }
    return [number, place.byteOffset, place.dtype];
  });
  return { files, places };
}

function claimOf(path: string, file: Handle): FileClaim {
  const bytes = native.fileSize(file);
  const last = Math.max(0, bytes - blockBytes);
  const blocks = [0, ...Array.from({ length: numBlocks }, () => randomInt(last + 1))];
  return { path, bytes, blocks, digest: digestOf(file, bytes, blocks) };
}

/** Of the header and the blocks of an open file. */
function digestOf(file: Handle, bytes: number, blocks: readonly number[]): string {
  const hash = createHash('sha256').update(String(bytes));
  const read = (at: number, length: number): Uint8Array => {
    using block = Tensor.empty([length], 'uint8', 'staging');
    native.fileRead(file, at, block.handle, dtypeNumber('uint8'));
    return block.dataSync() as unknown as Uint8Array;
  };
  for (const at of blocks) hash.update(read(at, Math.min(blockBytes, bytes - at)));
  // safetensors: the length of the header, then the header.
  const header = Number(new DataView(read(0, 8).slice().buffer).getBigUint64(0, true));
  if (header > 0 && header <= bytes - 8)
    for (let at = 8; at < 8 + header; at += 1 << 20) hash.update(read(at, Math.min(1 << 20, 8 + header - at)));
  return hash.digest('hex');
}

/** Opens the files at rank 0's paths; one rank of each host compares them. */
function openClaimed(files: readonly FileClaim[], compares: boolean): { handles: Handle[]; problem: string } {
  const handles: Handle[] = [];
  for (const { path, bytes, blocks, digest } of files) {
    try {
      const handle = native.fileOpen(path);
      handles.push(handle);
      const found = native.fileSize(handle);
      if (found !== bytes) return { handles, problem: `${path} has ${found} bytes there, but ${bytes} on rank 0` };
      if (compares && digestOf(handle, bytes, blocks) !== digest)
        return { handles, problem: `${path} is another file there` };
    } catch (error) {
      return { handles, problem: (error as Error).message };
    }
  }
  return { handles, problem: '' };
}
