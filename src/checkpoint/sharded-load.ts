// From an open sharded checkpoint to this rank's shards: each range is read straight to where it lives.
import type { AdamW, SlotState } from '../optim/adamw.ts';
import type { FullyShardedDataParallel } from '../parallel/fsdp/fsdp.ts';
import type { FsdpUnit } from '../parallel/fsdp/unit.ts';
import { dtypeSize } from '../tensor/dtype.ts';
import { fileStream, onStream, orderBehindComputing, replaceFileStream, StreamEvent } from '../tensor/streams.ts';
import { Tensor } from '../tensor/tensor.ts';
import { pieceKey } from './sharded-format.ts';
import type { ShardedCheckpoint } from './sharded-reader.ts';
import { persistentBuffers } from './sharded-write.ts';

type OnProgress = (progress: { bytes: number; totalBytes: number; seconds: number }) => void;

/** One place to fill. */
interface Part {
  target: Tensor;
  read(): void;
}

/** Reads everything that this rank holds. Errors: parameters that the checkpoint lacks, has too much, or in another shape. */
export async function loadPieces(
  checkpoint: ShardedCheckpoint,
  fsdp: FullyShardedDataParallel,
  optimizer: AdamW | undefined,
  onProgress: OnProgress | undefined,
): Promise<void> {
  compareNames(checkpoint, fsdp);
  fsdp.runtime.reshardAll();
  for (const unit of fsdp.units) unit.beginWrite();
  const parts = [...modelParts(checkpoint, fsdp), ...(optimizer ? optimizerParts(checkpoint, optimizer) : [])];
  const bytesOf = ({ target }: Part): number => target.numel * dtypeSize(target.dtype);
  const totalBytes = parts.reduce((sum, part) => sum + bytesOf(part), 0);
  const started = performance.now();
  let bytes = 0;
  const stream = fileStream();
  orderBehindComputing(stream);
  try {
    for (const part of parts) {
      onStream(stream, () => part.read());
      const event = new StreamEvent(stream);
      await event.wait().finally(() => event.dispose());
      bytes += bytesOf(part);
      onProgress?.({ bytes, totalBytes, seconds: (performance.now() - started) / 1000 });
    }
  } catch (error) {
    replaceFileStream(stream);
    throw error;
  }
  for (const unit of fsdp.units) unit.markShardWritten();
}

function* modelParts(checkpoint: ShardedCheckpoint, fsdp: FullyShardedDataParallel): Generator<Part> {
  for (const unit of fsdp.units) {
    yield { target: unit.shard, read: () => readFlat(checkpoint, 'parameter', unit, unit.shard) };
  }
  for (const parameter of fsdp.parameters()) {
    parameter.checkpointDtype = checkpoint.manifest.dtypes[parameter.name];
    if (parameter.owner) continue;
    const target = Tensor.empty(parameter.shape, parameter.dtype, 'parameter');
    parameter.setData(target, 'file');
    yield { target, read: () => checkpoint.read(pieceKey('parameter', parameter.name), target, 0, parameter.split) };
  }
  for (const [name, target] of persistentBuffers(fsdp.module)) {
    yield { target, read: () => checkpoint.read(pieceKey('buffer', name), target, 0) };
  }
}

function* optimizerParts(checkpoint: ShardedCheckpoint, optimizer: AdamW): Generator<Part> {
  for (const state of optimizer.states(true)) {
    const step = stepOf(checkpoint, state);
    if (step === undefined) continue;
    const { unit, parameter } = state;
    optimizer.setStep(step, unit ?? parameter);
    for (const [kind, target] of [
      ['exp_avg', state.expAvg],
      ['exp_avg_sq', state.expAvgSq],
    ] as const) {
      yield {
        target,
        read: () => {
          if (unit) readFlat(checkpoint, kind, unit, target);
          else checkpoint.read(pieceKey(kind, parameter!.name), target, 0, parameter!.split);
        },
      };
    }
  }
}

/** The ranges of a unit that lie in `target`, a prefix of this rank's part of the unit's flat buffer. */
function readFlat(
  checkpoint: ShardedCheckpoint,
  kind: 'parameter' | 'exp_avg' | 'exp_avg_sq',
  unit: FsdpUnit,
  target: Tensor,
): void {
  for (const { span, start, at, length } of unit.layout.within(unit.shardOffset, unit.shardOffset + target.numel)) {
    using range = target.slice(at, [length]);
    checkpoint.read(pieceKey(kind, span.parameter.name), range, start, span.parameter.split);
  }
}

/** Steps that the moments of a slot have taken; undefined when none were saved, as before its first step. */
function stepOf(checkpoint: ShardedCheckpoint, { unit, parameter }: SlotState): number | undefined {
  const members = unit
    ? unit.layout.spans.map((span) => span.parameter).filter(({ requiresGrad }) => requiresGrad)
    : [parameter!];
  const steps = new Map(
    members.map(({ name }) => [checkpoint.tensors.get(pieceKey('exp_avg', name))?.step, name] as const),
  );
  if (steps.size > 1) {
    const list = [...steps].map(([step, name]) => `${name} after ${step ?? 'no'} steps`);
    throw new Error(
      `${checkpoint.dir}: the optimizer state of one unit comes from different steps: ${list.join(', ')}`,
    );
  }
  return [...steps.keys()][0];
}

function compareNames(checkpoint: ShardedCheckpoint, fsdp: FullyShardedDataParallel): void {
  const own = new Map<string, readonly number[]>();
  for (const parameter of fsdp.parameters()) own.set(pieceKey('parameter', parameter.name), parameter.fullShape);
  for (const [name, tensor] of persistentBuffers(fsdp.module)) own.set(pieceKey('buffer', name), tensor.shape);
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
