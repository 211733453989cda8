// Adafactor, as torch.optim.Adafactor: instead of a second moment for each element, a matrix has a mean for each row and for each
// column. They are of the whole matrix, however it is divided: every rank adds up the squares of what it has, the sums go over the
// ranks that hold the parameters, and all ranks keep the same factors. The norm of the update is summed in the same way.
import type { StateTensor } from '../checkpoint/sharded_state.ts';
import { type Handle, NONE, native } from '../native.ts';
import type { Parameter } from '../nn/parameter.ts';
import type { TrainableSlice } from '../nn/trainable_slice.ts';
import { numelOf, Tensor } from '../tensor/tensor.ts';
import { elementwiseState } from './optimizer.ts';
import { type Decays, matricesDecay, type Named, nonNegative, SliceOptimizer, type Slot } from './slice_optimizer.ts';

export interface AdafactorOptions {
  /** The most that a step may move a parameter, relative to the size of its elements. Default 1e-2. */
  lr?: number | undefined;
  /** The second moments of step t keep 1 − t^beta2Decay of themselves. At most 0, default −0.8. */
  beta2Decay?: number | undefined;
  /**
   * The least root of a second moment, by default the spacing of numbers at 1 in the dtype of the parameters; and the least size of
   * a parameter's elements, default 1e-3.
   */
  eps?: readonly [number | undefined, number] | undefined;
  /** How large the elements of an update may be, as the root of the mean of their squares. Default 1. */
  d?: number | undefined;
  /** Decoupled, times the learning rate. Default 0. */
  weightDecay?: number | undefined;
  /** Which parameters decay. Default: those of two or more dimensions (no norms, no biases). */
  decays?: Decays | undefined;
}

/** One parameter of a slice, of the ranks' that share it. */
interface Entry {
  readonly parameter: Parameter;
  readonly index: number;
  readonly decays: boolean;
  /** Of a matrix: rows, columns, and where its factors begin among those of the slice; undefined of a vector. */
  readonly matrix: { readonly rows: number; readonly columns: number; readonly at: number } | undefined;
}

/** Elements of this rank, consecutive in a block of the whole matrix that begins at (row, column). */
interface Run {
  readonly entry: Entry;
  readonly at: number;
  readonly length: number;
  readonly first: number;
  readonly width: number;
  readonly row: number;
  readonly column: number;
}

interface AdafactorState {
  /** Of all matrices: means of rows, then of columns. */
  readonly factors: Tensor;
  /** (parameters): the mean of the rows' means. */
  readonly means: Tensor;
  /** Second moments of this rank's elements of vectors, by run. */
  readonly variances: ReadonlyMap<Run, Tensor>;
}

interface AdafactorSlot extends Slot {
  readonly entries: readonly Entry[];
  readonly runs: readonly Run[];
  readonly numFactors: number;
  state?: AdafactorState;
}

const spacings = { float32: 2 ** -23, bfloat16: 2 ** -7, float16: 2 ** -10 } as const;

/** Mirrors `torch.optim.Adafactor`. */
export class Adafactor extends SliceOptimizer<AdafactorSlot> {
  readonly stateKinds: readonly string[] = ['row_var', 'col_var', 'variance'];
  readonly beta2Decay: number;
  readonly eps: readonly [number | undefined, number];
  readonly d: number;
  readonly weightDecay: number;

  /** `parameters`: fsdp.namedParameters() or model.namedParameters(). Frozen parameters are left out. */
  constructor(parameters: Iterable<readonly [string, Parameter]>, options: AdafactorOptions = {}) {
    const { decays = matricesDecay } = options;
    super('Adafactor', parameters, options.lr ?? 1e-2, (slice, named) => slotOf(slice, decays, named));
    this.beta2Decay = options.beta2Decay ?? -0.8;
    this.eps = options.eps ?? [undefined, 1e-3];
    this.d = options.d ?? 1;
    this.weightDecay = nonNegative(this.name, 'weightDecay', options.weightDecay ?? 0);
    for (const eps of this.eps) nonNegative(this.name, 'eps', eps ?? 0);
    if (!(this.beta2Decay <= 0))
      throw new RangeError(`Adafactor: beta2Decay must be at most 0 but is ${this.beta2Decay}`);
    if (!(this.d >= 1)) throw new RangeError(`Adafactor: d must be at least 1 but is ${this.d}`);
  }

  /** @internal */
  protected update(slot: AdafactorSlot, grad: Tensor): void {
    const { slice, entries, numFactors } = slot;
    const state = stateOf(slot);
    using values = slice.values();
    using copy = slice.copy();
    const weight = slot.step ** this.beta2Decay;
    const eps1 = this.eps[0] ?? spacings[values.dtype as keyof typeof spacings];
    // Sums for the factors, then the squares of each parameter; then those of each update. The last place is for what another rank counts.
    using sums = Tensor.zeros([numFactors + entries.length], 'float32', 'other', slice.device);
    using norms = Tensor.zeros([entries.length + 1], 'float32', 'other', slice.device);
    const views = new Views({ values, grad, copy, sums, norms }, slot, state);

    for (const run of slot.runs) if (run.entry.parameter.placement.isFirst) views.addSquares(run);
    slice.reduce(sums, 'sum');
    for (const entry of entries) views.mixFactors(entry, weight);
    for (const run of slot.runs) views.addUpdate(run, eps1, weight);
    using counted = norms.slice(0, [entries.length]);
    slice.reduce(counted, 'sum');
    const scalars = {
      lr: this.lr,
      rho: Math.min(this.lr, 1 / Math.sqrt(slot.step)),
      eps1,
      eps2: this.eps[1],
      clip: this.d,
    };
    for (const run of slot.runs) views.step(run, { ...scalars, weightDecay: run.entry.decays ? this.weightDecay : 0 });
  }

  /** @internal */
  protected stateOf(slot: AdafactorSlot, create: boolean): (() => readonly StateTensor[]) | undefined {
    if (!slot.state && !create) return undefined;
    const { factors, variances } = stateOf(slot);
    return () => [
      ...slot.entries.flatMap(({ parameter, matrix }) => {
        if (!matrix) return [];
        const { rows, columns, at } = matrix;
        return [
          replicated('row_var', parameter, factors.slice(at, [rows])),
          replicated('col_var', parameter, factors.slice(at + rows, [columns])),
        ];
      }),
      ...[...slot.slice.ranges()].flatMap((range) => {
        const run = slot.runs.find(({ entry, at }) => entry.parameter === range.parameter && at === range.at);
        const variance = run && variances.get(run);
        return variance ? elementwiseState('variance', variance, [range], range.at) : [];
      }),
    ];
  }
}

/** What the steps of one update work on, cut into the operands of ops. */
class Views {
  private readonly tensors: Record<'values' | 'grad' | 'sums' | 'norms', Tensor> & { copy: Tensor | undefined };
  private readonly slot: AdafactorSlot;
  private readonly state: AdafactorState;

  constructor(tensors: Views['tensors'], slot: AdafactorSlot, state: AdafactorState) {
    this.tensors = tensors;
    this.slot = slot;
    this.state = state;
  }

  private get gradScale(): Handle {
    return this.slot.slice.gradScale?.handle ?? NONE;
  }

  private squaresOf({ index }: Entry): Tensor {
    return this.tensors.sums.slice(this.slot.numFactors + index, [1]);
  }

  /** Rows, columns and mean of a matrix; nothing of a vector. */
  private factorsOf({ matrix, index }: Entry, of: Tensor): { rows?: Tensor; columns?: Tensor; mean?: Tensor } {
    if (!matrix) return {};
    const { rows, columns, at } = matrix;
    return {
      rows: of.slice(at, [rows]),
      columns: of.slice(at + rows, [columns]),
      mean: this.state.means.slice(index, [1]),
    };
  }

  /** The squares of this rank's gradient by row and by column, and those of its parameters. */
  addSquares(run: Run): void {
    const { at, length, entry, first, width, row, column } = run;
    using values = this.tensors.values.slice(at, [length]);
    using squares = this.squaresOf(entry);
    native.sumSquares(squares.handle, values.handle, true);
    if (!entry.matrix) return;
    using grad = this.tensors.grad.slice(at, [length]);
    const { rows, columns, mean } = this.factorsOf(entry, this.tensors.sums);
    native.adafactorSums(rows!.handle, columns!.handle, grad.handle, this.gradScale, first, width, row, column);
    release(rows, columns, mean);
  }

  mixFactors(entry: Entry, weight: number): void {
    if (!entry.matrix) return;
    const own = this.factorsOf(entry, this.state.factors);
    const sums = this.factorsOf(entry, this.tensors.sums);
    native.adafactorFactors(
      own.rows!.handle,
      own.columns!.handle,
      own.mean!.handle,
      sums.rows!.handle,
      sums.columns!.handle,
      weight,
    );
    release(own.rows, own.columns, own.mean, sums.rows, sums.columns, sums.mean);
  }

  addUpdate(run: Run, eps1: number, weight: number): void {
    const { at, length, entry, first, width, row, column } = run;
    using grad = this.tensors.grad.slice(at, [length]);
    const place = entry.parameter.placement.isFirst ? entry.index : this.slot.entries.length;
    using out = this.tensors.norms.slice(place, [1]);
    const { rows, columns, mean } = this.factorsOf(entry, this.state.factors);
    native.adafactorNorm(
      out.handle,
      grad.handle,
      this.gradScale,
      this.state.variances.get(run)?.handle ?? NONE,
      rows?.handle ?? NONE,
      columns?.handle ?? NONE,
      mean?.handle ?? NONE,
      first,
      width,
      row,
      column,
      eps1,
      weight,
    );
    release(rows, columns, mean);
  }

  step(run: Run, scalars: Record<'lr' | 'rho' | 'eps1' | 'eps2' | 'clip' | 'weightDecay', number>): void {
    const { at, length, entry, first, width, row, column } = run;
    using values = this.tensors.values.slice(at, [length]);
    using grad = this.tensors.grad.slice(at, [length]);
    using copy = this.tensors.copy?.slice(at, [length]);
    using squares = this.squaresOf(entry);
    using norm = this.tensors.norms.slice(entry.index, [1]);
    const { rows, columns, mean } = this.factorsOf(entry, this.state.factors);
    native.adafactorStep(
      values.handle,
      grad.handle,
      this.gradScale,
      copy?.handle ?? NONE,
      this.state.variances.get(run)?.handle ?? NONE,
      rows?.handle ?? NONE,
      columns?.handle ?? NONE,
      mean?.handle ?? NONE,
      squares.handle,
      norm.handle,
      first,
      width,
      row,
      column,
      numelOf(entry.parameter.fullShape),
      scalars.lr,
      scalars.rho,
      scalars.eps1,
      scalars.eps2,
      scalars.clip,
      scalars.weightDecay,
    );
    release(rows, columns, mean);
  }
}

function release(...tensors: (Tensor | undefined)[]): void {
  for (const tensor of tensors) tensor?.dispose();
}

function slotOf(slice: TrainableSlice, decays: Decays, named: Named): AdafactorSlot {
  let numFactors = 0;
  const entries = slice.parameters.map((parameter, index): Entry => {
    const [rows = 1, columns = 1, ...more] = parameter.fullShape;
    const name = named.nameOf(parameter);
    if (more.length > 0)
      throw new Error(
        `Adafactor: ${name} has ${parameter.fullShape.length} dimensions; only matrices and vectors are known`,
      );
    const isMatrix = parameter.fullShape.length === 2;
    const matrix = isMatrix ? { rows, columns, at: numFactors } : undefined;
    if (isMatrix) numFactors += rows + columns;
    return { parameter, index, decays: decays(name, parameter), matrix };
  });
  const entryOf = new Map(entries.map((entry) => [entry.parameter, entry]));
  const runs = [...slice.ranges()].flatMap(({ parameter, start, at, length }): Run[] => {
    const entry = entryOf.get(parameter)!;
    if (!entry.matrix) return [{ entry, at, length, first: 0, width: Math.max(1, length), row: 0, column: 0 }];
    return Array.from(parameter.placement.pieces(start, length), (piece) => {
      const { row, col, cols } = piece.block;
      return { entry, at: at + piece.at, length: piece.length, first: piece.start, width: cols, row, column: col };
    });
  });
  return { slice, entries, runs, numFactors, step: 0 };
}

function stateOf(slot: AdafactorSlot): AdafactorState {
  const { device } = slot.slice;
  const zeros = (length: number): Tensor => Tensor.zeros([length], 'float32', 'optimizer', device);
  const vectors = slot.runs.filter(({ entry }) => !entry.matrix);
  slot.state ??= {
    factors: zeros(slot.numFactors),
    means: zeros(slot.entries.length),
    variances: new Map(vectors.map((run) => [run, zeros(run.length)])),
  };
  return slot.state;
}

function replicated(kind: string, parameter: Parameter, values: Tensor): StateTensor {
  const { numel } = values;
  const pieces = [{ block: { row: 0, rows: numel, col: 0, cols: 1 }, start: 0, at: 0, length: numel }];
  return { kind, parameter, shape: [numel], values, pieces, saved: pieces, isReplicated: true };
}
