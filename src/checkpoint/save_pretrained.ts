// Writes a Hugging Face folder from tensors that are produced one after the other, so that nobody holds the whole model.
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import type { DType } from '../tensor/dtype.ts';
import { HostParts } from '../tensor/host_parts.ts';
import type { Shape, Tensor } from '../tensor/tensor.ts';
import { CheckpointWriter } from './hf-files.ts';
import { writeWhole } from './safetensors.ts';
import { type CheckpointSource, copyCompanions } from './source.ts';

export interface SavedTensor {
  name: string;
  shape: Shape;
  /** dtype in the file */
  dtype: DType;
}

/** What stands beside the weights. */
export interface PretrainedFolder {
  /** config.json */
  readonly configText: string;
  /** Where tokenizer and chat template are copied from. */
  readonly source?: CheckpointSource | undefined;
}

export interface SaveOptions {
  /** A file grows to at most this. Default 5 GB, as in Transformers. */
  maxShardBytes?: number | undefined;
}

/** The writer's side of a save: give every tensor once, then finish. */
export interface PretrainedWriter {
  /** Enqueues the write, a few parts ahead of the file; then `tensor` may be disposed. */
  write(name: string, tensor: Tensor, elementOffset?: number): Promise<void>;
  /** Waits for the writes so far. */
  drain(): Promise<void>;
  /** Waits until everything is on the disk, then replaces the weights of the folder. */
  finish(): Promise<void>;
  abort(): Promise<void>;
}

/** Opens `dir` (made when absent) for the given tensors, in file order. */
export async function openPretrained(
  dir: string,
  model: PretrainedFolder,
  tensors: readonly SavedTensor[],
  options: SaveOptions = {},
): Promise<PretrainedWriter> {
  await mkdir(dir, { recursive: true });
  const writer = await CheckpointWriter.create(dir, tensors, {
    metadata: { format: 'pt' },
    ...(options.maxShardBytes === undefined ? {} : { maxShardSize: options.maxShardBytes }),
  });
  const parts = new HostParts();
  return {
    write: (name, tensor, offset = 0) =>
      parts.write(tensor, (part, at) => writer.write(name, part.handle, offset + at)),
    drain: () => writer.drain(),
    finish: async () => {
      parts[Symbol.dispose]();
      await writer.finish();
      await writeWhole(join(dir, 'config.json'), model.configText);
      if (model.source) await copyCompanions(model.source, dir);
    },
    abort: () => {
      parts[Symbol.dispose]();
      return writer.abort();
    },
  };
}

/** Saves tensors that can be read one by one in this process. */
export async function savePretrained(
  dir: string,
  model: PretrainedFolder,
  tensors: readonly (SavedTensor & { read(): Tensor })[],
  options: SaveOptions = {},
): Promise<void> {
  const writer = await openPretrained(dir, model, tensors, options);
  try {
    for (const { name, read } of tensors) {
      using tensor = read();
      await writer.write(name, tensor);
    }
    await writer.finish();
  } catch (error) {
    await writer.abort();
    throw error;
  }
}
