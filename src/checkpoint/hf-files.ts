// A Hugging Face checkpoint folder: model.safetensors, or several files and model.safetensors.index.json. Reading gives
// one map from names to places in open files; writing splits by size as Transformers does and replaces the old weights
// only when every new file is on the disk.
import { readdir, stat, unlink } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, FileFormatError, isObject, readJsonObject } from '../core/json.ts';
import type { Handle } from '../native.ts';
import { dtypeSize } from '../tensor/dtype.ts';
import {
  numelOf,
  openSafetensors,
  type SafetensorsFile,
  SafetensorsWriter,
  syncFolder,
  writeWhole,
} from './safetensors.ts';
import type { PlannedTensor, SafetensorsEntry } from './safetensors-header.ts';

export const weightsName = 'model.safetensors';
export const indexName = 'model.safetensors.index.json';

/** A tensor of a checkpoint and the file it is in. */
export interface CheckpointEntry extends SafetensorsEntry {
  readonly source: SafetensorsFile;
}

/** A contiguous part of a tensor in a file: from element `start`. */
export interface FilePart {
  readonly name: string;
  /** Of the whole tensor. */
  readonly shape: readonly number[];
  readonly start: number;
}

/** The open files of a checkpoint folder. */
export interface Checkpoint {
  readonly dir: string;
  readonly files: readonly SafetensorsFile[];
  readonly tensors: Map<string, CheckpointEntry>;
  close(): void;
}

const exists = (path: string): Promise<boolean> =>
  stat(path).then(
    (s) => s.isFile(),
    () => false,
  );

/**
 * Opens the weights of a folder; headers only, all files at once.
 * Errors name the folder and the files: no safetensors (with what to do about `.bin`), missing files of the index,
 * disagreements between index and files.
 */
export async function openCheckpoint(dir: string): Promise<Checkpoint> {
  if (await exists(join(dir, indexName))) return openIndexed(dir);
  if (!(await exists(join(dir, weightsName)))) throw await nothingToOpen(dir);
  const file = await openSafetensors(join(dir, weightsName));
  return checkpoint(dir, [file]);
}

function checkpoint(dir: string, files: readonly SafetensorsFile[]): Checkpoint {
  const tensors = new Map<string, CheckpointEntry>();
  for (const source of files) for (const [name, entry] of source.tensors) tensors.set(name, { ...entry, source });
  const close = () => {
    for (const file of files) file.close();
  };
  return { dir, files, tensors, close };
}

async function nothingToOpen(dir: string): Promise<Error> {
  let names: string[];
  try {
    names = await readdir(dir);
  } catch (cause) {
    return new Error(`${dir}: ${(cause as Error).message}`, { cause });
  }
  const pickled = names.filter((name) => /\.(bin|pt|pth|ckpt)$/.test(name) && !name.startsWith('training_args'));
  if (pickled.length === 0) return new FileFormatError(dir, `no ${weightsName} and no ${indexName} in this folder`);
  return new FileFormatError(
    dir,
    `the weights are PyTorch pickles (${pickled.slice(0, 3).join(', ')}), which are not read because they can run code. ` +
      'Convert them to safetensors: in Python, AutoModelForCausalLM.from_pretrained(dir).save_pretrained(dir)',
  );
}

async function openIndexed(dir: string): Promise<Checkpoint> {
  const path = join(dir, indexName);
  const index = await readJsonObject(path);
  const map = index.weight_map;
  if (!isObject(map)) throw new FileFormatError(path, `weight_map must be an object, got ${describe(map)}`);
  const names = new Set<string>();
  for (const [tensor, file] of Object.entries(map)) {
    if (typeof file !== 'string' || !/^[^/\\\0]+\.safetensors$/.test(file)) {
      throw new FileFormatError(
        path,
        `weight_map "${tensor}" must name a .safetensors file of this folder, got ${describe(file)}`,
      );
    }
    names.add(file);
  }
  const fileNames = [...names].sort();
  const present = await Promise.all(fileNames.map((name) => exists(join(dir, name))));
  const missing = fileNames.filter((_, i) => !present[i]);
  if (missing.length > 0) {
    throw new FileFormatError(
      path,
      `${missing.length} of ${fileNames.length} files are missing: ${missing.join(', ')}`,
    );
  }
  const opened = await Promise.allSettled(fileNames.map((name) => openSafetensors(join(dir, name))));
  const files = opened.flatMap((result) => (result.status === 'fulfilled' ? [result.value] : []));
  try {
    for (const result of opened) if (result.status === 'rejected') throw result.reason;
    compareWithIndex(path, map as Record<string, string>, fileNames, files);
  } catch (error) {
    for (const file of files) file.close();
    throw error;
  }
  return checkpoint(dir, files);
}

function compareWithIndex(
  path: string,
  map: Readonly<Record<string, string>>,
  fileNames: readonly string[],
  files: readonly SafetensorsFile[],
): void {
  const problems: string[] = [];
  for (const [tensor, fileName] of Object.entries(map)) {
    const file = files[fileNames.indexOf(fileName)];
    if (!file?.tensors.has(tensor)) problems.push(`"${tensor}" is not in ${fileName}`);
  }
  files.forEach((file, i) => {
    for (const tensor of file.tensors.keys()) {
      const listed = Object.hasOwn(map, tensor) ? map[tensor] : undefined;
      if (listed === undefined) problems.push(`"${tensor}" in ${fileNames[i]} is not in the index`);
      else if (listed !== fileNames[i]) problems.push(`"${tensor}" is in ${fileNames[i]} too, not only in ${listed}`);
    }
  });
  if (problems.length === 0) return;
  const more = problems.length > 10 ? `; and ${problems.length - 10} more` : '';
  throw new FileFormatError(path, `the index and the files disagree: ${problems.slice(0, 10).join('; ')}${more}`);
}

/** Files of a checkpoint to be written. */
export interface ShardPlan {
  readonly shards: readonly { readonly fileName: string; readonly entries: readonly PlannedTensor[] }[];
  /** Content of model.safetensors.index.json; undefined for a single file. */
  readonly index:
    | { readonly metadata: Record<string, number>; readonly weight_map: Record<string, string> }
    | undefined;
}

/** `5GB`, `500MB`, `1GiB`, … or a number of bytes. */
export function parseByteSize(size: number | string): number {
  if (typeof size === 'number') {
    if (!(size > 0)) throw new RangeError(`a size must be a positive number of bytes, got ${size}`);
    return size;
  }
  const match = /^(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B$/i.exec(size.trim());
  if (!match) throw new RangeError(`a size must look like 5GB, 500MB or 1GiB, got "${size}"`);
  const power = ' KMGT'.indexOf(match[2]!.toUpperCase() || ' ');
  return parseByteSize(Number(match[1]) * (match[3] ? 1024 : 1000) ** power);
}

/** Fills files one after the other up to `maxShardSize`; a tensor larger than that gets a file of its own. */
export function planShards(entries: Iterable<PlannedTensor>, maxShardSize: number | string = '5GB'): ShardPlan {
  const limit = parseByteSize(maxShardSize);
  const groups: PlannedTensor[][] = [];
  let room = 0;
  let totalSize = 0;
  let totalParameters = 0;
  for (const entry of entries) {
    const numel = numelOf(entry.shape);
    const bytes = numel * dtypeSize(entry.dtype);
    if (groups.length === 0 || bytes > room) {
      groups.push([]);
      room = limit;
    }
    groups.at(-1)!.push(entry);
    room -= bytes;
    totalSize += bytes;
    totalParameters += numel;
  }
  if (groups.length <= 1) return { shards: [{ fileName: weightsName, entries: groups[0] ?? [] }], index: undefined };
  const five = (n: number) => String(n).padStart(5, '0');
  const shards = groups.map((group, i) => ({
    fileName: `model-${five(i + 1)}-of-${five(groups.length)}.safetensors`,
    entries: group,
  }));
  const places = shards.flatMap(({ fileName, entries }) => entries.map(({ name }) => [name, fileName] as const));
  places.sort(([a], [b]) => (a < b ? -1 : 1));
  const metadata = { total_parameters: totalParameters, total_size: totalSize };
  return { shards, index: { metadata, weight_map: Object.fromEntries(places) } };
}

/**
 * Writes the weights of a checkpoint folder tensor by tensor, in any order. Old weights of the folder stay until every
 * new file is complete and on the disk; then they are replaced, and files of another split are removed.
 */
export class CheckpointWriter {
  readonly dir: string;
  readonly plan: ShardPlan;
  readonly #writers: SafetensorsWriter[] = [];
  readonly #of: Map<string, SafetensorsWriter> = new Map();

  private constructor(dir: string, plan: ShardPlan) {
    this.dir = dir;
    this.plan = plan;
  }

  /** `dir` exists. Space for all files is reserved at once. */
  static async create(
    dir: string,
    entries: Iterable<PlannedTensor>,
    options: {
      maxShardSize?: number | string | undefined;
      metadata?: Readonly<Record<string, string>> | undefined;
    } = {},
  ): Promise<CheckpointWriter> {
    const writer = new CheckpointWriter(dir, planShards(entries, options.maxShardSize));
    try {
      for (const { fileName, entries } of writer.plan.shards) {
        const file = SafetensorsWriter.create(join(dir, fileName), entries, options.metadata);
        writer.#writers.push(file);
        for (const { name } of entries) writer.#of.set(name, file);
      }
    } catch (error) {
      await writer.abort();
      throw error;
    }
    return writer;
  }

  /** See {@link SafetensorsWriter.write}. */
  write(name: string, tensor: Handle, elementOffset = 0): void {
    const writer = this.#of.get(name);
    if (!writer) throw new Error(`${this.dir} was not planned to hold a tensor "${name}"`);
    writer.write(name, tensor, elementOffset);
  }

  /** See {@link SafetensorsWriter.drain}. */
  async drain(): Promise<void> {
    for (const writer of this.#writers) await writer.drain();
  }

  /** Waits for the disk, then replaces the folder's weights. After an error the new files are gone. */
  async finish(): Promise<void> {
    try {
      for (const writer of this.#writers) await writer.flush();
      for (const writer of this.#writers) await writer.publish();
    } catch (error) {
      await this.abort();
      throw error;
    }
    const index = join(this.dir, indexName);
    if (this.plan.index) await writeWhole(index, `${JSON.stringify(this.plan.index, null, 2)}\n`);
    const current = new Set(this.plan.shards.map(({ fileName }) => fileName));
    if (this.plan.index) current.add(indexName);
    for (const name of await readdir(this.dir)) {
      const isWeights = name === weightsName || name === indexName || /^model-\d{5}-of-\d{5}\.safetensors$/.test(name);
      if (isWeights && !current.has(name)) await unlink(join(this.dir, name));
    }
    await syncFolder(this.dir);
  }

  async abort(): Promise<void> {
    for (const writer of this.#writers) await writer.abort();
  }
}
