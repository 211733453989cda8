// What an optimizer updates in one launch: a run of elements that this rank trains, with their gradient. A bucket of FSDP has one,
// and so has a parameter that nobody shards.
import type { Device, Tensor } from '../tensor/tensor.ts';
import type { Parameter } from './parameter.ts';
import type { Placement } from './placement.ts';

/** Elements of a parameter's part within a flat tensor. */
export interface SliceRange {
  parameter: Parameter;
  /** First element within the part that this rank has of the parameter. */
  start: number;
  /** First element within the flat tensor. */
  at: number;
  length: number;
}

/** Elements [start, start + length) of the part of a parameter that `placement` says: what some rank has of it. */
export interface Share {
  readonly parameter: Parameter;
  readonly placement: Placement;
  readonly start: number;
  readonly length: number;
}

/** @internal The same elements of the part of every rank that divides layers with this one. */
export function* sharesOf(parameter: Parameter, start: number, length: number): Generator<Share> {
  const { placement } = parameter;
  for (let rank = 0; rank < (placement.isWhole ? 1 : placement.position.size); rank++)
    yield { parameter, placement: placement.at(rank), start, length };
}

export interface TrainableSlice {
  /** May be 0: then there is nothing to update, but beginWrite and markWritten are called all the same. */
  readonly numel: number;
  readonly device: Device;
  /** Which elements of which parameters these are, ascending. */
  ranges(): Iterable<SliceRange>;
  /** How all ranks that together hold these parameters divide them, this rank among them: ranges of the parts of each. */
  shares(): Iterable<Share>;
  /** The parameters that have elements in the slice of some rank. */
  readonly parameters: readonly Parameter[];
  /** (numel) in the master dtype. A view: the caller disposes it. */
  values(): Tensor;
  /** (numel) in the compute dtype, to be written in the same pass. A view; undefined where there is none. */
  copy(): Tensor | undefined;
  /** (numel), complete over all ranks. A view; undefined where backward left none. */
  gradient(): Tensor | undefined;
  /** (1) float32: a factor on the gradient that clipping left. */
  readonly gradScale: Tensor | undefined;
  /** Reduces `tensor` in place over the ranks that together hold these parameters, each on its device. Enqueues. Collective. */
  reduce(tensor: Tensor, op: 'sum' | 'max'): void;
  /** Comes before the values are written, on every rank: others may still read them. Enqueues. */
  beginWrite(): void;
  /** The values were written, and the copy where there is one. */
  markWritten(): void;
  zeroGrad(): void;
}

class ParameterSlice implements TrainableSlice {
  readonly gradScale = undefined;
  private readonly parameter: Parameter;

  constructor(parameter: Parameter) {
    this.parameter = parameter;
  }

  get parameters(): readonly Parameter[] {
    return [this.parameter];
  }

  get numel(): number {
    return this.parameter.numel;
  }

  get device(): Device {
    return this.parameter.device;
  }

  ranges(): SliceRange[] {
    return [{ parameter: this.parameter, start: 0, at: 0, length: this.numel }];
  }

  shares(): Generator<Share> {
    return sharesOf(this.parameter, 0, this.numel);
  }

  values(): Tensor {
    return this.parameter.slice(0, [this.numel]);
  }

  copy(): undefined {
    return undefined;
  }

  gradient(): Tensor | undefined {
    return this.parameter.grad?.slice(0, [this.numel]);
  }

  reduce(): void {
    const { name, placement } = this.parameter;
    if (!placement.isWhole)
      throw new Error(
        `this optimizer sums over the parts of ${name}, which other ranks have: wrap the model with FSDP`,
      );
  }

  beginWrite(): void {}

  markWritten(): void {}

  zeroGrad(): void {
    this.parameter.grad?.dispose();
    this.parameter.grad = undefined;
  }
}

/** The slices that train `parameters`, each once: those of their buckets first. Frozen parameters have none. */
export function trainableSlices(parameters: Iterable<Parameter>): TrainableSlice[] {
  const own: TrainableSlice[] = [];
  const shared = new Set<TrainableSlice>();
  for (const parameter of parameters) {
    if (!parameter.requiresGrad) continue;
    const slice = parameter.owner?.trainableSlice;
    if (slice) shared.add(slice);
    else own.push(new ParameterSlice(parameter));
  }
  return [...own, ...shared];
}
