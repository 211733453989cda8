// Checkpoints whose weights are quantised already, as bitsandbytes stores them: `NAME.weight` holds codes, and tensors beside it what
// they mean. Their bytes are taken over as they are.
import { describe, FileFormatError, isObject, parseJson } from '../core/json.ts';
import { native } from '../native.ts';
import type { QuantizedSource } from '../nn/quantized_recipe.ts';
import { type DType, dtypeNumber, parseDType } from '../tensor/dtype.ts';
import { nf4Block, QuantizedLayout, type QuantizedStorage } from '../tensor/quantized.ts';
import { Tensor } from '../tensor/tensor.ts';
import type { CheckpointEntry } from './hf-files.ts';

/** A weight that is quantised in its file. */
export interface StoredWeight {
  /** Of what it stands for. */
  readonly shape: readonly number[];
  readonly dtype: DType;
  readonly storage: QuantizedStorage;
  readonly source: QuantizedSource;
  /** Names of the tensors that it is made of. */
  readonly parts: readonly string[];
}

type Entries = ReadonlyMap<string, CheckpointEntry>;

const stateKey = '.quant_state.bitsandbytes__';

/** The quantised weights of a checkpoint by name. Errors name the file: another scheme, block or table than those that are computed with. */
export async function findStoredWeights(entries: Entries): Promise<Map<string, StoredWeight>> {
  const found = new Map<string, StoredWeight>();
  for (const name of entries.keys()) {
    const at = name.indexOf(stateKey);
    if (at >= 0) found.set(name.slice(0, at), await fourBits(name.slice(0, at), name, entries));
    else if (name.endsWith('.SCB')) found.set(name.replace(/SCB$/, 'weight'), await eightBits(name, entries));
  }
  return found;
}

async function fourBits(name: string, stateName: string, entries: Entries): Promise<StoredWeight> {
  const state = entries.get(stateName)!;
  const { path } = state.source;
  const wrong = (what: string): FileFormatError => new FileFormatError(path, `${name}: ${what}`);
  const values = parseJson(new TextDecoder().decode(await bytesOf(state)), `${path}, ${stateName}`);
  if (!isObject(values)) throw wrong(`${stateName} must be an object, got ${describe(values)}`);
  const isDouble = values.nested_blocksize !== undefined;
  const dtype = parseDType(String(values.dtype));
  const { shape } = values;
  if (values.quant_type !== 'nf4') throw wrong(`quantised as ${describe(values.quant_type)}, but nf4 is computed with`);
  if (values.blocksize !== nf4Block || (isDouble && values.nested_blocksize !== 256))
    throw wrong('blocks must have 64 elements, and 256 scales');
  if (!dtype || !Array.isArray(shape) || shape.length !== 2 || !shape.every(Number.isInteger))
    throw wrong(`${stateName} has dtype ${describe(values.dtype)} and shape ${describe(shape)}`);
  const storage = isDouble ? 'nf4-double' : 'nf4';
  const layout = QuantizedLayout.whole(storage, [shape[0] as number, shape[1] as number]);
  const scales = Math.ceil(layout.numel / nf4Block);
  const piece = (suffix: string, byteLength: number): [string, CheckpointEntry] => {
    const key = `${name}${suffix}`;
    const entry = entries.get(key);
    if (entry?.byteLength !== byteLength)
      throw wrong(`${key} must have ${byteLength} bytes, but ${entry ? `has ${entry.byteLength}` : 'is not there'}`);
    return [key, entry];
  };
  const pieces: [at: number, part: [string, CheckpointEntry]][] = [
    [0, piece('', Math.ceil(layout.numel / 2))],
    [layout.scalesAt, piece('.absmax', scales * (isDouble ? 1 : 4))],
  ];
  const maps: [string, CheckpointEntry][] = [piece('.quant_map', 16 * 4)];
  const computed = tables();
  if (Buffer.compare(Buffer.from(await bytesOf(maps[0]![1])), computed.codes) !== 0)
    throw wrong(`${name}.quant_map is not that of NF4`);
  let offset: number | undefined;
  if (isDouble) {
    pieces.push([layout.groupsAt, piece('.nested_absmax', Math.ceil(scales / 256) * 4)]);
    maps.push(piece('.nested_quant_map', 256 * 4));
    if (Buffer.compare(Buffer.from(await bytesOf(maps[1]![1])), computed.scales) !== 0)
      throw wrong(`${name}.nested_quant_map is not the one that scales are computed with`);
    offset = values.nested_offset as number;
    if (typeof offset !== 'number') throw wrong(`nested_offset must be a number, got ${describe(offset)}`);
  }
  const parts = [...pieces.map(([, [key]]) => key), ...maps.map(([key]) => key), stateName];
  const read = pieces.map(([at, [, entry]]) => [at, entry] as const);
  return { shape: shape as number[], dtype, storage, source: new FilePieces(read, offset), parts };
}

async function eightBits(scalesName: string, entries: Entries): Promise<StoredWeight> {
  const base = scalesName.slice(0, -'SCB'.length);
  const [codes, scales, format] = ['weight', 'SCB', 'weight_format'].map((key) => entries.get(base + key));
  const [rows = 0, columns = 0] = codes?.shape ?? [];
  const { path } = scales!.source;
  if (codes?.shape.length !== 2 || codes.byteLength !== rows * columns || scales!.byteLength !== rows * 4)
    throw new FileFormatError(path, `${base}weight and ${scalesName} must be 8-bit rows and a scale of each`);
  if (format && new Uint8Array(await bytesOf(format))[0] !== 0)
    throw new FileFormatError(path, `${base}weight_format: only weights that are stored by rows are read`);
  const layout = QuantizedLayout.whole('int8', [rows, columns]);
  const source = new FilePieces(
    [
      [0, codes],
      [layout.scalesAt, scales!],
    ],
    undefined,
  );
  const parts = ['weight', 'SCB', 'weight_format'].map((key) => base + key).filter((key) => entries.has(key));
  return { shape: [rows, columns], dtype: 'float16', storage: 'int8', source, parts };
}

const bytesOf = ({ source, byteOffset, byteLength }: CheckpointEntry): Promise<ArrayBuffer> =>
  native.fileReadBytes(source.file, byteOffset, byteLength);

/** Places in files, each with where it stands among the bytes of the weight. */
class FilePieces implements QuantizedSource {
  readonly writer = 'file';
  private readonly pieces: readonly (readonly [at: number, entry: CheckpointEntry])[];
  private readonly offset: number | undefined;

  constructor(pieces: readonly (readonly [at: number, entry: CheckpointEntry])[], offset: number | undefined) {
    this.pieces = pieces;
    this.offset = offset;
  }

  fill(whole: Tensor, layout: QuantizedLayout): void {
    native.fill(whole.handle, 0);
    for (const [at, { source, byteOffset, byteLength }] of this.pieces) {
      using part = whole.slice(at, [byteLength]);
      native.fileRead(source.file, byteOffset, part.handle, dtypeNumber('uint8'));
    }
    if (this.offset === undefined) return;
    using offset = Tensor.from(new Uint8Array(new Float32Array([this.offset]).buffer), [4], { dtype: 'uint8' });
    using place = whole.slice(layout.offsetAt, [4]);
    place.copyFrom(offset);
  }
}

/** The bytes of the tables that weights are computed with, found from blocks that hold each of their codes. */
function tables(): { codes: Buffer; scales: Buffer } {
  const widen = (layout: QuantizedLayout, bytes: Uint8Array): Float32Array => {
    using q = Tensor.from(bytes, [bytes.length], { dtype: 'uint8' });
    using y = Tensor.empty([layout.numel]);
    native.dequantizeWeight(y.handle, q.handle, ...layout.operands);
    return y.dataSync() as Float32Array;
  };
  const one = new Uint8Array(new Float32Array([1]).buffer);
  const plain = QuantizedLayout.whole('nf4', [1, 16]);
  const codes = new Uint8Array(plain.bytes);
  for (let i = 0; i < 8; i++) codes[i] = (2 * i * 16) | (2 * i + 1);
  codes.set(one, plain.scalesAt);
  const double = QuantizedLayout.whole('nf4-double', [256, nf4Block]);
  const scales = new Uint8Array(double.bytes).fill(0xff, 0, double.scalesAt);
  for (let i = 0; i < 256; i++) scales[double.scalesAt + i] = i;
  scales.set(one, double.groupsAt);
  const firsts = widen(double, scales).filter((_, i) => i % nf4Block === 0);
  return { codes: Buffer.from(widen(plain, codes).buffer), scales: Buffer.from(firsts.buffer) };
}
