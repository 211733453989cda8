// From an open sharded checkpoint to this rank's shards: each range is read straight to where it lives.
import type { Parameter } from '../nn/parameter.ts';
import type { BlockPiece } from '../nn/placement.ts';
import type { SliceRange } from '../nn/trainable_slice.ts';
import { dtypeSize } from '../tensor/dtype.ts';
import { HostParts } from '../tensor/host_parts.ts';
import { fileStream, onStream, orderBehindComputing, replaceFileStream, StreamEvent } from '../tensor/streams.ts';
import { Tensor } from '../tensor/tensor.ts';
import { wholeBlock, within } from './pieces.ts';
import type { ShardedModel, ShardedOptimizer, ShardedOptimizerState, StateTensor } from './sharded_state.ts';
import { pieceKey } from './sharded-format.ts';
import type { ShardedCheckpoint } from './sharded-reader.ts';
import { persistentBuffers } from './sharded-write.ts';

type OnProgress = (progress: { bytes: number; totalBytes: number; seconds: number }) => void;

/** Places that are filled together. */
interface Part {
  bytes: number;
  /** Enqueues on the file stream. */
  read(): Promise<void>;
}

/** From the checkpoint to a tensor of any device, on the file stream; as ShardedCheckpoint.read. */
type ReadPieces = (key: string, target: Tensor, pieces: readonly BlockPiece[]) => Promise<void>;

/** Reads everything that this rank holds. Errors: parameters that the checkpoint lacks, has too much, or in another shape. */
export async function loadPieces(
  checkpoint: ShardedCheckpoint,
  model: ShardedModel,
  optimizer: ShardedOptimizer | undefined,
  onProgress: OnProgress | undefined,
): Promise<void> {
  compareNames(checkpoint, model);
  model.beginWrite();
  using through = new HostParts();
  const read: ReadPieces = (key, target, pieces) =>
    onStream(fileStream(), () =>
      through.read(target, (host, at) => checkpoint.read(key, host, within(pieces, at, host.numel))),
    );
  const parts = [
    ...modelParts(checkpoint, model, read),
    ...(optimizer ? optimizerParts(checkpoint, optimizer, read) : []),
  ];
  const totalBytes = parts.reduce((sum, part) => sum + part.bytes, 0);
  const started = performance.now();
  let bytes = 0;
  const stream = fileStream();
  orderBehindComputing(stream);
  try {
    for (const part of parts) {
      await part.read();
      const event = new StreamEvent(stream);
      await event.wait().finally(() => event.dispose());
      bytes += part.bytes;
      onProgress?.({ bytes, totalBytes, seconds: (performance.now() - started) / 1000 });
    }
  } catch (error) {
    replaceFileStream(stream);
    throw error;
  }
  model.markWritten();
}

function* modelParts(checkpoint: ShardedCheckpoint, model: ShardedModel, read: ReadPieces): Generator<Part> {
  for (const { values, ranges } of model.heldTensors())
    yield { bytes: bytesOf(values), read: () => readRanges(read, values, ranges) };
  for (const parameter of model.savedParameters()) {
    parameter.checkpointDtype = checkpoint.manifest.dtypes[parameter.name];
    if (parameter.owner) continue;
    const target = Tensor.empty(parameter.shape, parameter.dtype, 'parameter');
    parameter.setData(target, 'file');
    yield { bytes: bytesOf(target), read: () => readRanges(read, target, [wholeOf(parameter)]) };
  }
  for (const [name, target] of persistentBuffers(model.module)) {
    const pieces = [{ block: wholeBlock(target.shape), start: 0, at: 0, length: target.numel }];
    yield { bytes: bytesOf(target), read: () => read(pieceKey('buffer', name), target, pieces) };
  }
}

function bytesOf({ numel, dtype }: Tensor): number {
  return numel * dtypeSize(dtype);
}

function wholeOf(parameter: Parameter): SliceRange {
  return { parameter, start: 0, at: 0, length: parameter.numel };
}

async function readRanges(read: ReadPieces, target: Tensor, ranges: Iterable<SliceRange>): Promise<void> {
  for (const { parameter, start, at, length } of ranges) {
    using range = target.slice(at, [length]);
    await read(pieceKey('parameter', parameter.name), range, [...parameter.placement.pieces(start, length)]);
  }
}

function* optimizerParts(
  checkpoint: ShardedCheckpoint,
  optimizer: ShardedOptimizer,
  read: ReadPieces,
): Generator<Part> {
  const saved = checkpoint.optimizer;
  if (saved !== undefined && saved !== optimizer.name)
    throw new Error(
      `${checkpoint.dir}: its optimizer state is that of ${saved}, and this run has ${optimizer.name}: go on with ${saved}, or load the weights alone`,
    );
  for (const state of optimizer.states(true)) {
    const step = stepOf(checkpoint, state, optimizer.stateKinds);
    if (step === undefined) continue;
    state.setStep(step);
    const tensors = state.tensors();
    const bytes = tensors.reduce((sum, { values }) => sum + bytesOf(values), 0);
    yield { bytes, read: () => readState(checkpoint, tensors, read) };
  }
}

async function readState(
  checkpoint: ShardedCheckpoint,
  tensors: readonly StateTensor[],
  read: ReadPieces,
): Promise<void> {
  for (const { kind, parameter, shape, values, pieces } of tensors) {
    const key = pieceKey(kind, parameter.name);
    const stored = checkpoint.tensors.get(key);
    if (stored?.shape.join() !== shape.join())
      throw new Error(
        `${checkpoint.dir}: ${kind} of ${parameter.name} is [${stored?.shape ?? 'missing'}] but [${shape}] is wanted`,
      );
    await read(key, values, pieces);
    values.dispose();
  }
}

/** Steps that the state of a slice has taken; undefined when none was saved, as before its first step. */
function stepOf(
  checkpoint: ShardedCheckpoint,
  { parameters }: ShardedOptimizerState,
  kinds: readonly string[],
): number | undefined {
  const stepOfOne = (name: string): number | undefined =>
    kinds.map((kind) => checkpoint.tensors.get(pieceKey(kind, name))?.step).find((step) => step !== undefined);
  const steps = new Map(parameters.map(({ name }) => [stepOfOne(name), name] as const));
  if (steps.size > 1) {
    const list = [...steps].map(([step, name]) => `${name} after ${step ?? 'no'} steps`);
    throw new Error(
      `${checkpoint.dir}: the optimizer state of parameters that are updated together comes from different steps: ${list.join(', ')}`,
    );
  }
  return [...steps.keys()][0];
}

function compareNames(checkpoint: ShardedCheckpoint, model: ShardedModel): void {
  const own = new Map<string, readonly number[]>();
  for (const { name, fullShape } of model.savedParameters()) own.set(pieceKey('parameter', name), fullShape);
  for (const [name, tensor] of persistentBuffers(model.module)) own.set(pieceKey('buffer', name), tensor.shape);
  const problems: string[] = [];
  const report = (label: string, list: string[]): void => {
    const more = list.length > 8 ? ` and ${list.length - 8} more` : '';
    if (list.length > 0) problems.push(`${label}: ${list.slice(0, 8).join(', ')}${more}`);
  };
  const bare = (key: string): string => key.slice(key.indexOf('/') + 1);
  const stored = [...checkpoint.tensors.keys()].filter((key) => /^(parameter|buffer)\//.test(key));
  report('missing', [...own.keys()].filter((key) => !checkpoint.tensors.has(key)).map(bare));
  report('unexpected', stored.filter((key) => !own.has(key)).map(bare));
  const shapes: string[] = [];
  for (const [key, shape] of own) {
    const other = checkpoint.tensors.get(key)?.shape;
    if (other && other.join() !== shape.join()) shapes.push(`${bare(key)} is [${other}] but the model has [${shape}]`);
  }
  report('wrong shape', shapes);
  if (problems.length > 0)
    throw new Error(`${checkpoint.dir} is a checkpoint of another model; ${problems.join('; ')}`);
}
