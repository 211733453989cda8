// AdamW with moments of 8 bits: blocks of 256 elements with a scale each, as Dettmers et al., 8-bit Optimizers via Block-wise
// Quantization, and bitsandbytes' AdamW8bit. Blocks are those of whole parameters, however these are divided: of a block that
// several ranks have elements of, the scale is the largest of theirs. Small parameters keep float32, as there.
import type { StateTensor } from '../checkpoint/sharded_state.ts';
import { NONE, native } from '../native.ts';
import type { Parameter } from '../nn/parameter.ts';
import type { Share, SliceRange, TrainableSlice } from '../nn/trainable_slice.ts';
import { type Device, numelOf, Tensor } from '../tensor/tensor.ts';
import { type AdamWOptions, checkedBetas } from './adamw.ts';
import { dynamicMap } from './dynamic_map.ts';
import { elementwiseState } from './optimizer.ts';
import { type BlockRanges, type BlockRuns, blockRuns, cutBlocks, scalePieces, scaleShape } from './quant_blocks.ts';
import { matricesDecay, type Named, nonNegative, SliceOptimizer, type Slot } from './slice_optimizer.ts';

export interface AdamW8bitOptions extends AdamWOptions {
  /** Parameters of fewer elements keep moments in float32. Default 4096. */
  min8bitSize?: number | undefined;
}

/** Elements [from, to) of a slice that are updated in one launch: ranges of parameters that are alike. */
interface Part {
  readonly ranges: readonly SliceRange[];
  readonly from: number;
  readonly to: number;
  readonly decays: boolean;
  readonly isSmall: boolean;
}

/** Of a part whose moments are float32. */
interface SmallState {
  readonly expAvg: Tensor;
  readonly expAvgSq: Tensor;
}

/** Of a part whose moments have 8 bits: codes of its elements, and a scale for each run of a block. */
interface QuantState extends SmallState {
  readonly expAvgScale: Tensor;
  readonly expAvgSqScale: Tensor;
  readonly runs: Tensor;
  /** [run, slot] of those that have a slot among the peaks. */
  readonly cut: Tensor | undefined;
  /** By range of the part. */
  readonly ofRanges: readonly { readonly range: SliceRange; readonly runs: BlockRuns; readonly first: number }[];
}

interface AdamW8bitSlot extends Slot {
  readonly parts: readonly Part[];
  /** Peaks that ranks agree on: where those of each parameter begin, and how many there are. */
  readonly cut: ReadonlyMap<Parameter, { readonly at: number; readonly ranges: BlockRanges }>;
  readonly numCut: number;
  states?: ReadonlyMap<Part, SmallState | QuantState>;
  maps?: { readonly signed: Tensor; readonly unsigned: Tensor };
}

/** Mirrors `bitsandbytes.optim.AdamW8bit`: block-wise, with its dynamic maps. */
export class AdamW8bit extends SliceOptimizer<AdamW8bitSlot> {
  readonly stateKinds: readonly string[] = ['exp_avg_8bit', 'exp_avg'];
  readonly betas: readonly [number, number];
  readonly eps: number;
  readonly weightDecay: number;

  /** `parameters`: fsdp.namedParameters() or model.namedParameters(). Frozen parameters are left out. */
  constructor(parameters: Iterable<readonly [string, Parameter]>, options: AdamW8bitOptions = {}) {
    super('AdamW8bit', parameters, options.lr ?? 1e-3, (slice, named) => slotOf(slice, options, named));
    this.betas = checkedBetas(this.name, options.betas ?? [0.9, 0.999]);
    this.eps = nonNegative(this.name, 'eps', options.eps ?? 1e-8);
    this.weightDecay = nonNegative(this.name, 'weightDecay', options.weightDecay ?? 0.01);
  }

  /** @internal */
  protected update(slot: AdamW8bitSlot, grad: Tensor): void {
    const { slice, parts, numCut } = slot;
    const states = statesOf(slot);
    using values = slice.values();
    using copy = slice.copy();
    using peaks = numCut > 0 ? Tensor.zeros([2 * numCut], 'float32', 'other', slice.device) : undefined;
    if (peaks) {
      for (const part of parts) this.findPeaks(slot, part, states.get(part)!, grad, peaks);
      slice.reduce(peaks, 'max');
    }
    for (const part of parts) this.updatePart(slot, part, states.get(part)!, { values, copy, grad, peaks });
  }

  private findPeaks(
    slot: AdamW8bitSlot,
    part: Part,
    state: SmallState | QuantState,
    grad: Tensor,
    peaks: Tensor,
  ): void {
    if (!('runs' in state) || !state.cut) return;
    const { signed, unsigned } = mapsOf(slot);
    using own = grad.slice(part.from, [part.to - part.from]);
    native.adamw8bitPeaks(
      peaks.handle,
      state.cut.handle,
      own.handle,
      state.expAvg.handle,
      state.expAvgSq.handle,
      state.expAvgScale.handle,
      state.expAvgSqScale.handle,
      state.runs.handle,
      signed.handle,
      unsigned.handle,
      slot.slice.gradScale?.handle ?? NONE,
      this.betas[0],
      this.betas[1],
    );
  }

  private updatePart(
    slot: AdamW8bitSlot,
    part: Part,
    state: SmallState | QuantState,
    tensors: { values: Tensor; grad: Tensor; copy: Tensor | undefined; peaks: Tensor | undefined },
  ): void {
    const length = part.to - part.from;
    const { gradScale } = slot.slice;
    using values = tensors.values.slice(part.from, [length]);
    using grad = tensors.grad.slice(part.from, [length]);
    using copy = tensors.copy?.slice(part.from, [length]);
    const [beta1, beta2] = this.betas;
    const weightDecay = part.decays ? this.weightDecay : 0;
    if (!('runs' in state)) {
      native.adamw(
        values.handle,
        grad.handle,
        state.expAvg.handle,
        state.expAvgSq.handle,
        NONE,
        gradScale?.handle ?? NONE,
        copy?.handle ?? NONE,
        this.lr,
        beta1,
        beta2,
        this.eps,
        weightDecay,
        slot.step,
      );
      return;
    }
    const { signed, unsigned } = mapsOf(slot);
    native.adamw8bit(
      values.handle,
      grad.handle,
      state.expAvg.handle,
      state.expAvgSq.handle,
      state.expAvgScale.handle,
      state.expAvgSqScale.handle,
      state.runs.handle,
      signed.handle,
      unsigned.handle,
      state.cut?.handle ?? NONE,
      state.cut ? tensors.peaks!.handle : NONE,
      gradScale?.handle ?? NONE,
      copy?.handle ?? NONE,
      this.lr,
      beta1,
      beta2,
      this.eps,
      weightDecay,
      slot.step,
    );
  }

  /** @internal */
  protected stateOf(slot: AdamW8bitSlot, create: boolean): (() => readonly StateTensor[]) | undefined {
    if (!slot.states && !create) return undefined;
    const states = statesOf(slot);
    return () =>
      slot.parts.flatMap((part) => {
        const state = states.get(part)!;
        const kind = 'runs' in state ? '_8bit' : '';
        return [
          ...elementwiseState(`exp_avg${kind}`, state.expAvg, part.ranges, part.from),
          ...elementwiseState(`exp_avg_sq${kind}`, state.expAvgSq, part.ranges, part.from),
          ...('runs' in state ? scaleStates(state) : []),
        ];
      });
  }
}

function scaleStates({ ofRanges, expAvgScale, expAvgSqScale }: QuantState): StateTensor[] {
  return ofRanges.flatMap(({ range, runs, first }) => {
    const { parameter, start, length } = range;
    const { placement, fullShape } = parameter;
    const pieces = scalePieces(placement, start, length, runs, () => true);
    const saved = placement.isFirst ? scalePieces(placement, start, length, runs, (run) => runs.hasFirst[run]!) : [];
    const state = (kind: string, scales: Tensor): StateTensor => {
      const values = scales.slice(first, [runs.blocks.length]);
      return { kind, parameter, shape: scaleShape(fullShape), values, pieces, saved };
    };
    return [state('exp_avg_scale', expAvgScale), state('exp_avg_sq_scale', expAvgSqScale)];
  });
}

function slotOf(slice: TrainableSlice, options: AdamW8bitOptions, named: Named): AdamW8bitSlot {
  const { decays = matricesDecay, min8bitSize = 4096 } = options;
  const isSmall = (parameter: Parameter): boolean => numelOf(parameter.fullShape) < min8bitSize;
  const parts: Part[] = [];
  for (const range of slice.ranges()) {
    const { parameter, at, length } = range;
    const like = { decays: decays(named.nameOf(parameter), parameter), isSmall: isSmall(parameter) };
    const last = parts.at(-1);
    if (last && last.decays === like.decays && last.isSmall === like.isSmall)
      parts[parts.length - 1] = { ...last, ranges: [...last.ranges, range], to: at + length };
    else parts.push({ ...like, ranges: [range], from: at, to: at + length });
  }
  const shares = new Map<Parameter, Share[]>(slice.parameters.map((parameter) => [parameter, []]));
  for (const share of slice.shares()) shares.get(share.parameter)?.push(share);
  const cut = new Map<Parameter, { at: number; ranges: BlockRanges }>();
  let numCut = 0;
  for (const parameter of slice.parameters) {
    if (isSmall(parameter)) continue;
    const ranges = cutBlocks(parameter.fullShape, shares.get(parameter)!);
    cut.set(parameter, { at: numCut, ranges });
    numCut += ranges.reduce((sum, [from, to]) => sum + to - from, 0);
  }
  return { slice, parts, cut, numCut, step: 0 };
}

function statesOf(slot: AdamW8bitSlot): ReadonlyMap<Part, SmallState | QuantState> {
  const { device } = slot.slice;
  slot.states ??= new Map(
    slot.parts.map((part) => {
      const length = part.to - part.from;
      return [part, part.isSmall ? smallState(length, device) : quantState(slot, part, device)] as const;
    }),
  );
  return slot.states;
}

function smallState(length: number, device: Device): SmallState {
  const zeros = (): Tensor => Tensor.zeros([length], 'float32', 'optimizer', device);
  return { expAvg: zeros(), expAvgSq: zeros() };
}

function quantState(slot: AdamW8bitSlot, part: Part, device: Device): QuantState {
  let count = 0;
  const bounds: number[] = [];
  const pairs: number[] = [];
  const ofRanges = part.ranges.map((range) => {
    const { parameter, start, at, length } = range;
    const runs = blockRuns(parameter.placement, start, length);
    const first = count;
    for (const bound of runs.bounds) bounds.push(at - part.from + bound);
    const slots = slotsOf(slot.cut.get(parameter)!);
    for (const [i, block] of runs.blocks.entries()) {
      const place = slots(block);
      if (place !== undefined) pairs.push(first + i, place);
    }
    count += runs.blocks.length;
    return { range, runs, first };
  });
  const codes = (): Tensor => Tensor.zeros([part.to - part.from], 'uint8', 'optimizer', device);
  const scales = (): Tensor => Tensor.zeros([count], 'float32', 'optimizer', device);
  return {
    expAvg: codes(),
    expAvgSq: codes(),
    expAvgScale: scales(),
    expAvgSqScale: scales(),
    runs: integers(bounds, device),
    cut: pairs.length > 0 ? integers(pairs, device) : undefined,
    ofRanges,
  };
}

/** The place of a cut block among the peaks; ascending blocks only. */
function slotsOf({ at, ranges }: { at: number; ranges: BlockRanges }): (block: number) => number | undefined {
  let next = 0;
  let place = at;
  return (block) => {
    for (; next < ranges.length && ranges[next]![1] <= block; next++) place += ranges[next]![1] - ranges[next]![0];
    const from = ranges[next]?.[0];
    return from === undefined || block < from ? undefined : place + block - from;
  };
}

function integers(values: readonly number[], device: Device): Tensor {
  const tensor = Tensor.empty([values.length], 'int64', 'optimizer', device);
  native.tensorWrite(tensor.handle, BigInt64Array.from(values, BigInt));
  return tensor;
}

function mapsOf(slot: AdamW8bitSlot): NonNullable<AdamW8bitSlot['maps']> {
  const map = (signed: boolean): Tensor => {
    const tensor = Tensor.empty([256], 'float32', 'optimizer', slot.slice.device);
    native.tensorWrite(tensor.handle, dynamicMap(signed));
    return tensor;
  };
  slot.maps ??= { signed: map(true), unsigned: map(false) };
  return slot.maps;
}
