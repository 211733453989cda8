// The header of a safetensors file: 8 bytes of length, JSON, then the tensors' bytes without gaps. Files come from
// strangers: nothing in a header is believed before it is checked, and every error names the file and the problem.
import { describe, FileFormatError, isObject, parseJson } from '../core/json.ts';
import { type DType, dtypeFromSafetensors, dtypeSize, safetensorsName } from '../tensor/dtype.ts';

/** Stored types that the package can list but not load. */
export type UnsupportedDType = `unsupported:${string}`;

/** A tensor in a file. */
export interface SafetensorsEntry {
  readonly dtype: DType | UnsupportedDType;
  readonly shape: readonly number[];
  /** From the start of the file. */
  readonly byteOffset: number;
  readonly byteLength: number;
}

export interface SafetensorsHeader {
  /** In the order of their bytes. */
  readonly tensors: Map<string, SafetensorsEntry>;
  readonly metadata: Map<string, string>;
}

/** Headers larger than this are refused, as by the original. */
export const maxHeaderBytes = 100_000_000;

const bits: ReadonlyMap<string, number> = new Map(
  Object.entries({
    BOOL: 8,
    U8: 8,
    I8: 8,
    F8_E5M2: 8,
    F8_E4M3: 8,
    F8_E8M0: 8,
    F8_E5M2FNUZ: 8,
    F8_E4M3FNUZ: 8,
    F4: 4,
    F6_E2M3: 6,
    F6_E3M2: 6,
    I16: 16,
    U16: 16,
    F16: 16,
    BF16: 16,
    I32: 32,
    U32: 32,
    F32: 32,
    I64: 64,
    U64: 64,
    F64: 64,
    C64: 64,
  }),
);

/** Length of the JSON part, from the first 8 bytes. */
export function headerLength(prefix: Uint8Array, fileBytes: number, path: string): number {
  if (fileBytes < 8) throw new FileFormatError(path, `not a safetensors file: it has only ${fileBytes} bytes`);
  const length = new DataView(prefix.buffer, prefix.byteOffset, 8).getBigUint64(0, true);
  if (length > BigInt(maxHeaderBytes)) {
    throw new FileFormatError(path, `not a safetensors file: a header of ${length} bytes (at most ${maxHeaderBytes})`);
  }
  if (8 + Number(length) > fileBytes) {
    throw new FileFormatError(path, `cut short: a header of ${length} bytes, but the file has ${fileBytes}`);
  }
  return Number(length);
}

/** Parses and checks the JSON part of the header of a file of `fileBytes` bytes. */
export function parseHeader(header: Uint8Array, fileBytes: number, path: string): SafetensorsHeader {
  let text: string;
  try {
    text = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(header);
  } catch (cause) {
    throw new FileFormatError(path, 'the header is not UTF-8', { cause });
  }
  if (text[0] !== '{') throw new FileFormatError(path, 'the header does not start with {');
  const json = parseJson(text, `${path} (header)`);
  if (!isObject(json)) throw new FileFormatError(path, 'the header is not a JSON object');
  const twice = duplicateKey(text);
  if (twice !== undefined) throw new FileFormatError(path, `the header has the key "${twice}" twice`);

  const dataStart = 8 + header.byteLength;
  const metadata = new Map<string, string>();
  const entries: [string, SafetensorsEntry][] = [];
  for (const [name, value] of Object.entries(json)) {
    if (name === '__metadata__') readMetadata(value, metadata, path);
    else entries.push([name, readEntry(name, value, dataStart, fileBytes, path)]);
  }
  entries.sort(([a, x], [b, y]) => x.byteOffset - y.byteOffset || x.byteLength - y.byteLength || (a < b ? -1 : 1));
  let end = dataStart;
  let previous = 'the header';
  for (const [name, entry] of entries) {
    if (entry.byteOffset < end) throw new FileFormatError(path, `"${name}" overlaps "${previous}"`);
    if (entry.byteOffset > end) {
      throw new FileFormatError(
        path,
        `${entry.byteOffset - end} bytes between "${previous}" and "${name}" belong to nobody`,
      );
    }
    end = entry.byteOffset + entry.byteLength;
    previous = name;
  }
  if (end !== fileBytes)
    throw new FileFormatError(path, `${fileBytes - end} bytes after "${previous}" belong to nobody`);
  return { tensors: new Map(entries), metadata };
}

function readMetadata(value: unknown, into: Map<string, string>, path: string): void {
  if (!isObject(value)) throw new FileFormatError(path, `__metadata__ must be an object, got ${describe(value)}`);
  for (const [key, text] of Object.entries(value)) {
    if (typeof text !== 'string') {
      throw new FileFormatError(path, `__metadata__ key "${key}" must be a string, got ${describe(text)}`);
    }
    into.set(key, text);
  }
}

const isSize = (value: unknown): value is number => Number.isSafeInteger(value) && (value as number) >= 0;

function readEntry(name: string, value: unknown, dataStart: number, fileBytes: number, path: string): SafetensorsEntry {
  const bad = (problem: string) => new FileFormatError(path, `tensor "${name}": ${problem}`);
  if (!isObject(value)) throw bad(`must be an object, got ${describe(value)}`);
  for (const key of Object.keys(value)) {
    if (key !== 'dtype' && key !== 'shape' && key !== 'data_offsets') throw bad(`unknown key "${key}"`);
  }
  const { dtype, shape, data_offsets: offsets } = value;
  const width = typeof dtype === 'string' ? bits.get(dtype) : undefined;
  if (width === undefined) throw bad(`unknown dtype ${describe(dtype)}`);
  if (!Array.isArray(shape) || !shape.every(isSize)) {
    throw bad(`shape must be an array of whole numbers from 0, got ${describe(shape)}`);
  }
  const [begin, end] = Array.isArray(offsets) && offsets.length === 2 ? (offsets as unknown[]) : [];
  if (!isSize(begin) || !isSize(end) || begin > end) {
    throw bad(`data_offsets must be [begin, end] with 0 ≤ begin ≤ end, got ${describe(offsets)}`);
  }
  if (end > fileBytes - dataStart) {
    throw bad(`its bytes end at ${end} but the file holds ${fileBytes - dataStart} (is the file cut short?)`);
  }
  const wanted = shape.reduce((a: number, b: number) => a * b, width) / 8;
  if (wanted !== end - begin) {
    throw bad(`${dtype} of shape ${describe(shape)} needs ${wanted} bytes but data_offsets span ${end - begin}`);
  }
  const known = dtypeFromSafetensors(dtype as string);
  return {
    dtype: known ?? `unsupported:${dtype}`,
    shape: shape.map((n: number) => n + 0), // -0 becomes 0
    byteOffset: dataStart + begin,
    byteLength: end - begin,
  };
}

/** The dtype of a tensor that is about to be used. Error: a stored type that tensors cannot have. */
export function usableDType(entry: SafetensorsEntry, name: string, path: string): DType {
  if (!entry.dtype.startsWith('unsupported:')) return entry.dtype as DType;
  const stored = entry.dtype.slice('unsupported:'.length);
  throw new FileFormatError(
    path,
    `tensor "${name}" is stored as ${stored}; supported are F32, F16, BF16, I64, I32 and U8`,
  );
}

/** A tensor to be written. */
export interface PlannedTensor {
  readonly name: string;
  readonly dtype: DType;
  readonly shape: readonly number[];
}

export interface SafetensorsPlan {
  /** Length and JSON, padded with spaces to a multiple of 8. */
  readonly header: Uint8Array<ArrayBuffer>;
  readonly tensors: Map<string, SafetensorsEntry & { readonly dtype: DType }>;
  readonly fileBytes: number;
}

/** Lays out a file: tensors in the order given. Error: a name given twice. */
export function planSafetensors(
  entries: Iterable<PlannedTensor>,
  metadata: Readonly<Record<string, string>> = { format: 'pt' },
): SafetensorsPlan {
  const parts: string[] = [];
  if (Object.keys(metadata).length > 0) parts.push(`"__metadata__":${JSON.stringify(metadata)}`);
  const relative = new Map<string, { dtype: DType; shape: readonly number[]; begin: number; byteLength: number }>();
  let end = 0;
  for (const { name, dtype, shape } of entries) {
    if (relative.has(name) || name === '__metadata__')
      throw new Error(`a safetensors file cannot hold "${name}" twice`);
    const byteLength = shape.reduce((a, b) => a * b, 1) * dtypeSize(dtype);
    if (!shape.every(isSize) || !Number.isSafeInteger(end + byteLength)) {
      throw new RangeError(`tensor "${name}": shape [${shape}] cannot be written`);
    }
    relative.set(name, { dtype, shape: [...shape], begin: end, byteLength });
    const entry = { dtype: safetensorsName(dtype), shape, data_offsets: [end, end + byteLength] };
    parts.push(`${JSON.stringify(name)}:${JSON.stringify(entry)}`);
    end += byteLength;
  }
  const json = new TextEncoder().encode(`{${parts.join(',')}}`);
  const length = Math.ceil(json.byteLength / 8) * 8;
  if (length > maxHeaderBytes) throw new RangeError(`a safetensors header of ${length} bytes is too large`);
  const header = new Uint8Array(8 + length).fill(0x20);
  new DataView(header.buffer).setBigUint64(0, BigInt(length), true);
  header.set(json, 8);
  const tensors = new Map<string, SafetensorsEntry & { dtype: DType }>();
  for (const [name, { dtype, shape, begin, byteLength }] of relative) {
    tensors.set(name, { dtype, shape, byteOffset: header.byteLength + begin, byteLength });
  }
  return { header, tensors, fileBytes: header.byteLength + end };
}

/** The first key that an object in valid JSON `text` has twice: JSON.parse keeps the last one without a word. */
export function duplicateKey(text: string): string | undefined {
  const stack: (Set<string> | null)[] = []; // null: an array
  const string = /"(?:[^"\\]|\\.)*"/y;
  let expectKey = false;
  for (let i = 0; i < text.length; i++) {
    const c = text[i];
    if (c === '{') {
      stack.push(new Set());
      expectKey = true;
    } else if (c === '[') {
      stack.push(null);
      expectKey = false;
    } else if (c === '}' || c === ']') {
      stack.pop();
      expectKey = false;
    } else if (c === ',') {
      expectKey = stack.at(-1) instanceof Set;
    } else if (c === '"') {
      string.lastIndex = i;
      const literal = string.exec(text)![0];
      i += literal.length - 1;
      if (!expectKey) continue;
      const key = JSON.parse(literal) as string;
      const keys = stack.at(-1)!;
      if (keys.has(key)) return key;
      keys.add(key);
      expectKey = false;
    }
  }
  return undefined;
}
