// One safetensors file: opened for ranged reads on a native descriptor, or written tensor by tensor. Written files get
// their name only when complete and on the disk; until then they lie beside it under a temporary name.
import { randomBytes } from 'node:crypto';
import { open, rename, rm, unlink, writeFile } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { type Handle, native } from '../native.ts';
import { dtypeNumber } from '../tensor/dtype.ts';
import { fileStream, onStream, orderBehindComputing, replaceFileStream, StreamEvent } from '../tensor/streams.ts';
import {
  headerLength,
  type PlannedTensor,
  parseHeader,
  planSafetensors,
  type SafetensorsEntry,
  type SafetensorsHeader,
  type SafetensorsPlan,
  usableDType,
} from './safetensors-header.ts';

/** An open safetensors file. The descriptor stays open until `close`, also if the file is replaced meanwhile. */
export interface SafetensorsFile extends SafetensorsHeader {
  readonly path: string;
  /** Native file, for `fileRead` with an entry's `byteOffset`. */
  readonly file: Handle;
  /** May be called as soon as the reads are enqueued. */
  close(): void;
}

/**
 * Opens a safetensors file and checks its header; no tensor is read.
 * Errors name the file: ERR_FILE_OPEN, ERR_FILE_FORMAT (FileFormatError).
 */
export async function openSafetensors(path: string): Promise<SafetensorsFile> {
  const file = native.fileOpen(path);
  try {
    const bytes = native.fileSize(file);
    const prefix = bytes < 8 ? new ArrayBuffer(0) : await native.fileReadBytes(file, 0, 8);
    const length = headerLength(new Uint8Array(prefix), bytes, path);
    const header = new Uint8Array(await native.fileReadBytes(file, 8, length));
    return { path, file, ...parseHeader(header, bytes, path), close: () => void native.fileClose(file) };
  } catch (error) {
    native.fileClose(file);
    throw error;
  }
}

/** The entry `name` of an open file. Error: not there, with the file's name. */
export function entryOf(source: SafetensorsFile, name: string): SafetensorsEntry {
  const entry = source.tensors.get(name);
  if (!entry) throw new Error(`${source.path} has no tensor "${name}"`);
  return entry;
}

/**
 * Enqueues the read of a tensor's elements from `elementOffset` on into `dst` (as many as it has), converted to its
 * dtype. Error, at once: a stored type that is not supported. A file cut short meanwhile is ERR_FILE_TRUNCATED where
 * the stream is waited for.
 */
export function readTensor(source: SafetensorsFile, name: string, dst: Handle, elementOffset = 0): void {
  const entry = entryOf(source, name);
  const dtype = usableDType(entry, name, source.path);
  const offset = entry.byteOffset + elementOffset * (entry.byteLength / Math.max(1, numelOf(entry.shape)));
  native.fileRead(source.file, offset, dst, dtypeNumber(dtype));
}

export function numelOf(shape: readonly number[]): number {
  return shape.reduce((a, b) => a * b, 1);
}

/** Makes a rename or a new file in `dir` survive a power cut. */
export async function syncFolder(dir: string): Promise<void> {
  const handle = await open(dir, 'r');
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
}

/** A temporary name beside `path`, so that a rename puts the file in place at once. */
function temporaryName(path: string): string {
  return join(dirname(path), `.${basename(path)}.${process.pid}-${randomBytes(4).toString('hex')}.tmp`);
}

/** Writes a text file that has its name only when it is whole and on the disk. After an error nothing is left behind. */
export async function writeWhole(path: string, text: string): Promise<void> {
  const temporary = temporaryName(path);
  try {
    await writeFile(temporary, text, { flush: true });
    await rename(temporary, path);
  } catch (error) {
    await rm(temporary, { force: true });
    throw error;
  }
}

/**
 * Writes one safetensors file, tensor by tensor, in any order and by ranges. Writes are enqueued behind what is computed;
 * memory is bounded whatever the file's size. A disk without room for the whole file is an error in `create`.
 */
export class SafetensorsWriter {
  readonly path: string;
  readonly plan: SafetensorsPlan;
  readonly #temporary: string;
  readonly #left: Map<string, number>;
  readonly #stream: number = fileStream();
  #file: Handle | undefined;
  #synced = false;

  private constructor(path: string, plan: SafetensorsPlan) {
    this.path = path;
    this.plan = plan;
    this.#temporary = temporaryName(path);
    this.#left = new Map([...plan.tensors].map(([name, { shape }]) => [name, numelOf(shape)]));
    this.#file = native.fileCreate(this.#temporary, plan.fileBytes);
    const file = this.#file;
    onStream(this.#stream, () => native.fileWriteBytes(file, 0, plan.header));
  }

  /** Lays out the file (tensors in the order given) and reserves its space under a temporary name. */
  static create(
    path: string,
    entries: Iterable<PlannedTensor>,
    metadata?: Readonly<Record<string, string>>,
  ): SafetensorsWriter {
    return new SafetensorsWriter(path, planSafetensors(entries, metadata));
  }

  /**
   * Enqueues the write of `tensor` as the elements of `name` from `elementOffset` on, converted to the planned dtype.
   * The tensor may be released at once. Ranges of one tensor must not overlap.
   */
  write(name: string, tensor: Handle, elementOffset = 0): void {
    const entry = this.plan.tensors.get(name);
    if (!entry) throw new Error(`${this.path} was not planned to hold a tensor "${name}"`);
    const file = this.#file;
    if (file === undefined || this.#synced) throw new Error(`${this.path} is already finished`);
    const numel = numelOf(entry.shape);
    if (!(elementOffset >= 0 && elementOffset <= numel)) {
      throw new RangeError(`${this.path}: "${name}" has ${numel} elements, none at ${elementOffset}`);
    }
    const offset = entry.byteOffset + (elementOffset * entry.byteLength) / Math.max(1, numel);
    const left = this.#left.get(name)!;
    const room = Math.min(left, numel - elementOffset);
    orderBehindComputing(this.#stream);
    const written = onStream(this.#stream, () =>
      native.fileWrite(file, offset, tensor, dtypeNumber(entry.dtype), room),
    );
    this.#left.set(name, left - written);
  }

  /** Waits for the writes so far; bounds what is under way. */
  async drain(): Promise<void> {
    const event = new StreamEvent(this.#stream);
    try {
      await event.wait();
    } catch (error) {
      replaceFileStream(this.#stream);
      throw error;
    } finally {
      event.dispose();
    }
  }

  /** Waits until everything is on the disk, then gives the file its name. After an error nothing is left behind. */
  async finish(): Promise<void> {
    await this.flush();
    await this.publish();
    await syncFolder(dirname(this.path));
  }

  /** The first half of `finish`: complete and on the disk, still under the temporary name. */
  async flush(): Promise<void> {
    if (this.#file === undefined) throw new Error(`${this.path} is already finished`);
    const incomplete = [...this.#left].filter(([, left]) => left > 0);
    try {
      if (incomplete.length > 0) {
        const list = incomplete.slice(0, 5).map(([name, left]) => `"${name}" (${left} elements)`);
        const more = incomplete.length > 5 ? ` and ${incomplete.length - 5} more` : '';
        throw new Error(`${this.path} is not complete: ${list.join(', ')}${more} were not written`);
      }
      this.#synced = true;
      await this.drain();
      const file = this.#file;
      const event = onStream(this.#stream, () => native.fileSync(file));
      try {
        await native.eventWaitAsync(event);
      } catch (error) {
        replaceFileStream(this.#stream);
        throw error;
      } finally {
        native.eventRelease(event);
      }
    } catch (error) {
      await this.abort();
      throw error;
    }
  }

  /** The second half: the rename. */
  async publish(): Promise<void> {
    if (this.#file === undefined || !this.#synced) throw new Error(`${this.path} is not flushed`);
    try {
      await rename(this.#temporary, this.path);
    } catch (error) {
      await this.abort();
      throw error;
    }
    native.fileClose(this.#file);
    this.#file = undefined;
  }

  /** Removes what was written. Harmless after `finish`. */
  async abort(): Promise<void> {
    if (this.#file === undefined) return;
    native.fileClose(this.#file);
    this.#file = undefined;
    await unlink(this.#temporary).catch(() => {});
  }
}
