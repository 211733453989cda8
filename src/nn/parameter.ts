// A parameter: a tensor that may be on meta, lazy (a recipe that nobody has read), real, or owned by an FSDP unit.

import type { GradClaim, GradSink, GradSum } from '../autograd/record.ts';
import { processState } from '../core/context.ts';
import type { Handle } from '../native.ts';
import type { DType } from '../tensor/dtype.ts';
import { fillThroughHost } from '../tensor/host_parts.ts';
import type { QuantizedLayout, QuantizedStorage } from '../tensor/quantized.ts';
import { type Device, type MemoryKind, type Shape, Tensor, type TensorData } from '../tensor/tensor.ts';
import { Placement } from './placement.ts';
import { FloatSource, partLayout, QuantizedRecipe, StoredSource } from './quantized_recipe.ts';
import {
  ConstantRecipe,
  FromRank0Recipe,
  NormalRecipe,
  PartRecipe,
  ReceiveRecipe,
  type Recipe,
  TensorRecipe,
  UniformRecipe,
  type Writer,
} from './recipe.ts';
import type { TrainableSlice } from './trainable_slice.ts';

/** @internal Parameters of one owner that lie one behind the other there, as one. */
export interface AdjacentParameters {
  /** All their unsharded values, in one dimension. Of the owner. Throws when the unit is sharded. */
  data(): Tensor;
  gradSink(): GradSink;
}

/** @internal What FSDP answers for a parameter that it has flattened. */
export interface ParameterOwner {
  readonly device: Device;
  /** The unsharded values. Throws when the unit is sharded. */
  parameterData(parameter: Parameter): Tensor;
  /** Undefined where these do not lie one behind the other, in this order and without a gap. Holds as long as the owner does. */
  adjacent(parameters: readonly Parameter[]): AdjacentParameters | undefined;
  gradSink(parameter: Parameter): GradSink;
  claimGrad(parameter: Parameter): GradClaim | undefined;
  /** What an optimizer updates; undefined where nothing is trained. */
  readonly trainableSlice: TrainableSlice | undefined;
}

/** How a parameter is initialised when nothing is loaded. */
export type Init =
  | { kind: 'constant'; value: number }
  /** N(0, std); `paddingRow`: a row of zeros. */
  | { kind: 'normal'; std: number; paddingRow?: number | undefined }
  /** Uniform in [-bound, bound). */
  | { kind: 'uniform'; bound: number }
  /** What follows from other parameters. */
  | { kind: 'derived'; recipe: () => Recipe };

const creating: { onMeta: boolean } = processState('creating', 'whether new parameters are on meta', { onMeta: false });

/** @internal */
export function withMetaParameters<T>(fn: () => T): T {
  const previous = creating.onMeta;
  creating.onMeta = true;
  try {
    return fn();
  } finally {
    creating.onMeta = previous;
  }
}

export class Parameter extends Tensor {
  readonly isParameter = true as const;
  /** The name in the checkpoint, e.g. `model.layers.0.mlp.up_proj.weight`. Set by the model that owns it. */
  name = '';
  /** The dtype that the checkpoint had, for saving; undefined when it was not loaded. */
  checkpointDtype: DType | undefined;
  /** @internal */
  owner: ParameterOwner | undefined;
  /** Which part of the whole this rank has; `shape` is that of the part. */
  placement: Placement;
  /** @internal Ranks that each make a part of the gradient; undefined where each has all of it. */
  gradSum: GradSum | undefined;
  /** @internal */
  readonly init: Init;
  /** @internal How the values are stored where they have few bits; `dtype` is then uint8, that of what is stored. */
  quantized: QuantizedLayout | undefined;
  private recipe_: Recipe | undefined;
  private device_: Device;
  private data_: Tensor | undefined;
  private writer_: Writer = 'none';

  /** `placement`: makes this rank's part of a parameter of `shape`. */
  constructor(shape: Shape, dtype: DType, init: Init, placement: Placement = new Placement(shape)) {
    super(undefined, placement.localShape, dtype);
    this.requiresGrad = true;
    this.init = init;
    this.placement = placement;
    this.device_ = creating.onMeta ? 'meta' : 'cpu';
    if (!creating.onMeta) this.recipe_ = this.initRecipe();
  }

  private initRecipe(): Recipe {
    const { quantized, placement } = this;
    const whole = this.wholeInit();
    if (quantized) return new QuantizedRecipe(new FloatSource(whole), quantized.storage, placement);
    const isUniform = placement.isWhole || this.init.kind === 'constant';
    return isUniform ? whole : new PartRecipe(whole, placement);
  }

  /** @internal The first values of the whole of which this is a part. */
  wholeInit(): Recipe {
    const { init } = this;
    if (init.kind === 'constant') return new ConstantRecipe(init.value);
    if (init.kind === 'derived') return init.recipe();
    if (init.kind === 'uniform') return new UniformRecipe(this, init.bound);
    const row = this.fullShape.at(-1) ?? 1;
    const padding = init.paddingRow;
    const zeroTo = padding === undefined ? 0 : (padding + 1) * row;
    return new NormalRecipe(this, init.std, (padding ?? 0) * row, zeroTo);
  }

  /**
   * @internal Stores the values in few bits from now on, and freezes them. They are quantised when they are read; those that exist,
   * now. Errors: not a floating matrix, or in a unit of FSDP.
   */
  quantize(storage: QuantizedStorage): void {
    if (this.owner) throw new Error(`${this.name} is in a unit of FSDP already: quantise a model before it is wrapped`);
    if (this.quantized || this.shape.length !== 2)
      throw new Error(`${this.name} [${this.shape}] ${this.quantized ? 'is quantised already' : 'is no matrix'}`);
    const values = this.device_ === 'meta' ? undefined : currentRecipe(this);
    this.quantized = partLayout(storage, this.placement);
    this.requiresGrad = false;
    this.checkpointDtype ??= this.dtype;
    this.dtype = 'uint8';
    if (!values) return;
    const [data, device] = [this.data_, this.home];
    this.data_ = undefined;
    this.setRecipe(values, device);
    if (!data) return;
    this.materialize();
    data.dispose();
  }

  /** @internal Of what is stored: the parameter's own, or bytes. */
  get storedShape(): Shape {
    return this.quantized ? [this.quantized.bytes] : this.shape;
  }

  /** @internal Elements of what is stored. */
  get storedNumel(): number {
    return this.quantized?.bytes ?? this.numel;
  }

  /** Shape in the checkpoint. */
  get fullShape(): Shape {
    return this.placement.fullShape;
  }

  override get device(): Device {
    return this.device_;
  }

  /** Where the values come from while nobody has read them; undefined on meta, and once real. */
  get recipe(): Recipe | undefined {
    return this.recipe_;
  }

  /** Who wrote the values last (or will, when the recipe is read). */
  get lastWriter(): Writer {
    return this.writer_ === 'none' && this.recipe_ ? this.recipe_.writer : this.writer_;
  }

  /** @internal Values will come from `recipe`; what was there is dropped. */
  setRecipe(recipe: Recipe, device: Device = 'cpu'): void {
    this.data_?.dispose();
    this.data_ = undefined;
    this.recipe_ = this.quantized ? quantizing(recipe, this.quantized.storage, this.placement) : recipe;
    this.device_ = device;
    this.writer_ = 'none';
  }

  /** @internal Takes over real values. */
  setData(data: Tensor, writer: Writer): void {
    if (this.data_ !== data) this.data_?.dispose();
    this.data_ = data;
    this.recipe_ = undefined;
    this.device_ = data.device;
    this.writer_ = writer;
  }

  /** @internal FSDP has flattened the parameter: its values live in the unit from now on. */
  setOwner(owner: ParameterOwner, writer: Writer): void {
    this.data_?.dispose();
    this.data_ = undefined;
    this.recipe_ = undefined;
    this.device_ = owner.device;
    this.writer_ = writer;
    this.owner = owner;
  }

  /** True when the values exist in memory (not meta, not lazy, not owned by FSDP). */
  get isReal(): boolean {
    return this.data_ !== undefined;
  }

  /** Drops the values and puts the parameter on meta. */
  toMeta(): void {
    this.data_?.dispose();
    this.data_ = undefined;
    this.recipe_ = undefined;
    this.device_ = 'meta';
    this.writer_ = 'none';
  }

  /** Uninitialised memory on `device`, as torch's to_empty. */
  toEmpty(device: Device = 'cpu'): void {
    if (device === 'meta') {
      this.toMeta();
      return;
    }
    this.setData(Tensor.empty(this.storedShape, this.dtype, 'parameter', device), 'none');
  }

  /** Back to the values of a fresh model. Leaves meta. */
  resetParameters(): void {
    this.setRecipe(this.initRecipe(), this.home);
  }

  /** Where values are written: the device of those before. */
  private get home(): 'cpu' | 'cuda' {
    return this.device_ === 'cuda' ? 'cuda' : 'cpu';
  }

  /** @internal Values and gradient go to `device`; a recipe will be read there. On meta, or in a unit, nothing changes. */
  moveTo(device: 'cpu' | 'cuda'): void {
    if (this.owner || this.device_ === device || this.device_ === 'meta') return;
    this.device_ = device;
    if (this.data_) this.setData(copyOn(device, this.data_, 'parameter'), this.writer_);
    if (!this.grad) return;
    const there = copyOn(device, this.grad, 'gradient');
    this.grad.dispose();
    this.grad = there;
  }

  /** Reads the recipe now, whole. */
  materialize(): Tensor {
    if (this.owner) return this.owner.parameterData(this);
    if (this.data_) return this.data_;
    if (!this.recipe_) {
      throw new Error(
        `parameter ${this.name || `[${this.shape}]`} is on meta: it has no values. Wrap the model with FSDP and syncModuleStates, or call toEmpty and resetParameters`,
      );
    }
    const data = Tensor.empty(this.storedShape, this.dtype, 'parameter', this.home);
    const recipe = this.recipe_;
    fillThroughHost(data, (host, at) => recipe.read(host, at));
    recipe.release?.();
    this.setData(data, recipe.writer);
    return data;
  }

  private refuseElements(): void {
    if (this.quantized) throw new Error(quantizedProblem(this.name, 'has no elements to look at'));
  }

  /** @internal Of the elements; of the bytes, where the parameter is quantised. */
  override get handle(): Handle {
    return this.materialize().handle;
  }

  override view(shape: Shape): Tensor {
    this.refuseElements();
    return this.materialize().view(shape);
  }

  override narrow(start: number, length: number): Tensor {
    this.refuseElements();
    return this.materialize().narrow(start, length);
  }

  /** @internal */
  override slice(offset: number, shape: Shape): Tensor {
    return this.materialize().slice(offset, shape);
  }

  override detach(): Tensor {
    if (this.device_ === 'meta') return Tensor.meta(this.shape, this.dtype);
    this.refuseElements();
    return this.materialize().detach();
  }

  override data(): Promise<TensorData> {
    this.refuseElements();
    return super.data();
  }

  override dataSync(): TensorData {
    this.refuseElements();
    return super.dataSync();
  }

  /** Overwrites the values, as `param.data.copy_()`; ends the recipe. */
  override copyFrom(source: Tensor): void {
    if (this.quantized) throw new Error(quantizedProblem(this.name, 'cannot be written'));
    if (source.numel !== this.numel) {
      throw new RangeError(`${this.name}: shape [${source.shape}] was given but [${this.shape}] is wanted`);
    }
    if (this.owner) this.materialize().copyFrom(source);
    else {
      const data = Tensor.empty(this.shape, this.dtype, 'parameter', this.home);
      data.copyFrom(source);
      this.setData(data, 'user');
    }
  }

  /** @internal */
  gradSink(): GradSink {
    if (this.owner) return this.owner.gradSink(this);
    const accumulate = this.grad !== undefined;
    this.grad ??= Tensor.empty(this.shape, this.dtype, 'gradient', this.device);
    return { target: this.grad, accumulate };
  }

  /** @internal */
  claimGrad(): GradClaim | undefined {
    return this.gradSum ? undefined : this.owner?.claimGrad(this);
  }

  override dispose(): void {
    this.data_?.dispose();
    this.data_ = undefined;
  }

  override toString(): string {
    return `Parameter(${this.name}, [${this.shape}], ${this.dtype}, ${this.device})`;
  }
}

/** @internal A copy that outlives the scope in which a module is moved, unlike that of Tensor.to. */
export function copyOn(device: Device, source: Tensor, kind: MemoryKind): Tensor {
  const copy = Tensor.empty(source.shape, source.dtype, kind, device);
  copy.copyFrom(source);
  return copy;
}

/** What reads bytes of a quantised parameter: `recipe` does, or gives values that are quantised. */
function quantizing(recipe: Recipe, storage: QuantizedStorage, placement: Placement): Recipe {
  const givesBytes =
    recipe instanceof QuantizedRecipe || recipe instanceof FromRank0Recipe || recipe instanceof ReceiveRecipe;
  return givesBytes ? recipe : new QuantizedRecipe(new FloatSource(recipe), storage, placement);
}

/** @internal */
export function quantizedProblem(name: string, what: string): string {
  return (
    `${name} is quantised and ${what}: its checkpoint is the one it was loaded from. Save what is trained beside it (the adapter), ` +
    'or merge that into the model without quantisation'
  );
}

/** @internal Where the values come from now. Throws for a parameter on meta. */
export function currentRecipe(parameter: Parameter): Recipe {
  if (parameter.isReal && parameter.quantized) {
    const { quantized, placement, lastWriter } = parameter;
    const bytes = parameter.materialize();
    if (!placement.isWhole) return new TensorRecipe(bytes, lastWriter);
    return new QuantizedRecipe(new StoredSource(bytes, lastWriter), quantized.storage, placement);
  }
  if (parameter.isReal) return new TensorRecipe(parameter.materialize(), parameter.lastWriter);
  if (parameter.recipe) return parameter.recipe;
  throw new Error(
    `parameter ${parameter.name} is on meta and nothing gives it values; use syncModuleStates, or a paramInitFn`,
  );
}
