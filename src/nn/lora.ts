// Adapters of low rank (LoRA, DoRA) of linear layers: small trained matrices beside a frozen weight. How each is divided follows from
// how the weight is. A model may have several adapters, of which one acts. Names of parameters are PEFT's.
import { addBias } from '../autograd/functions/arithmetic.ts';
import { scaleColumns, squaresOfRows } from '../autograd/functions/dora.ts';
import { dropout } from '../autograd/functions/dropout.ts';
import { addLowRank } from '../autograd/functions/low_rank.ts';
import type { GradSum } from '../autograd/record.ts';
import { processState } from '../core/context.ts';
import type { Tensor } from '../tensor/tensor.ts';
import { Linear, type LinearAdapter } from './layers.ts';
import { RowLengthsRecipe } from './lora_recipes.ts';
import { Module } from './module.ts';
import { currentRecipe, type Init, Parameter, withMetaParameters } from './parameter.ts';
import { type AxisPlacement, Placement } from './placement.ts';
import type { Recipe } from './recipe.ts';

/** One adapter of one linear layer. */
export interface LoraSettings {
  readonly r: number;
  /** Of the product of the two matrices. */
  readonly factor: number;
  /** Whether the rows of the sum have a trained length (DoRA). */
  readonly isDora: boolean;
  /** Part of the inputs of `lora_A` that training drops. */
  readonly dropout: number;
  readonly initA: Init;
  readonly initB: Init;
}

/** One adapter of a model. */
export interface ModelAdapter {
  /** By path of the linear layer. */
  readonly layers: ReadonlyMap<string, LoraSettings>;
  /** Names of the model's own parameters that are trained and saved with it. */
  readonly trained: ReadonlySet<string>;
  /** What it was made from, for its file. */
  readonly config: object;
}

/** The adapters of a model; its layers ask here which of them acts. */
export interface ModelAdapters {
  readonly byName: Map<string, ModelAdapter>;
  active: string | undefined;
  /** How many times it is disabled: callers nest. */
  disabled: number;
  /** The adapter that the weights hold already. */
  merged: string | undefined;
  /** Where weights came from before it was merged into them, of those that can be read again. */
  readonly unmerged: Map<Parameter, Recipe>;
}

/** The ranks that each make a part of a gradient of a parameter that is placed so; undefined where it is complete. */
export type SumOf = (placement: Placement) => GradSum | undefined;

const adapted: WeakMap<Module, ModelAdapters> = processState('adapted', 'adapters, by model', new WeakMap());

/** The adapters of `model`; undefined where it never had one. */
export function adaptersOf(model: Module): ModelAdapters | undefined {
  return adapted.get(model);
}

/** The parameters of one adapter: names as in its file, without prefix, and those that a model trains beside it. */
export interface LoraFactors {
  readonly settings: LoraSettings;
  /** (r, in) */
  readonly a: Parameter;
  /** (out, r) */
  readonly b: Parameter;
  /** (out): lengths of the rows, of DoRA. */
  readonly magnitude: Parameter | undefined;
}

/** A parameter at a path that ends in the name of an adapter: `q_proj.lora_A.default.weight`. */
class Factor extends Module {
  weight: Parameter;

  constructor(weight: Parameter) {
    super();
    this.weight = weight;
  }

  forward(): never {
    throw new Error('a factor of an adapter has no forward; call the layer that it belongs to');
  }
}

/** The factors of one kind, by name of the adapter. */
class Factors extends Module {
  readonly byName = new Map<string, Factor>();

  override *namedChildren(): Generator<[string, Module]> {
    yield* this.byName;
  }

  forward(): never {
    throw new Error('a factor of an adapter has no forward; call the layer that it belongs to');
  }
}

/** All adapters of one linear layer. */
export class LoraLayer implements LinearAdapter {
  private readonly linear: Linear;
  private readonly path: string;
  private readonly adapters: ModelAdapters;
  private readonly byName = new Map<string, LoraFactors>();
  private readonly kinds = { lora_A: new Factors(), lora_B: new Factors(), lora_magnitude_vector: new Factors() };

  constructor(linear: Linear, path: string, adapters: ModelAdapters) {
    this.linear = linear;
    this.path = path;
    this.adapters = adapters;
  }

  *namedChildren(): Generator<[string, Module]> {
    for (const [kind, factors] of Object.entries(this.kinds)) if (factors.byName.size > 0) yield [kind, factors];
  }

  get(name: string): LoraFactors | undefined {
    return this.byName.get(name);
  }

  get isActive(): boolean {
    return this.acting !== undefined;
  }

  private get acting(): LoraFactors | undefined {
    const { active, disabled, merged } = this.adapters;
    return active === undefined || disabled > 0 || merged === active ? undefined : this.byName.get(active);
  }

  /** Parameters are float32, on meta where the weight is. */
  add(name: string, settings: LoraSettings, sumOf: SumOf): void {
    const { weight } = this.linear;
    const [outFeatures, inFeatures] = weight.fullShape as [number, number];
    const { position } = weight.placement;
    const held = heldBy(weight.placement.held);
    const make = (kind: keyof typeof this.kinds, shape: readonly number[], init: Init, how: AxisPlacement) => {
      const parameter = new Parameter(shape, 'float32', init, new Placement(shape, how, position));
      parameter.name = `${this.path}.${kind}.${name}.weight`;
      parameter.gradSum = sumOf(parameter.placement);
      this.kinds[kind].byName.set(name, new Factor(parameter));
      return parameter;
    };
    const factors = (): LoraFactors => {
      const a = make('lora_A', [settings.r, inFeatures], settings.initA, held.a);
      const b = make('lora_B', [outFeatures, settings.r], settings.initB, held.b);
      const lengths = (): Recipe => new RowLengthsRecipe(wholeRecipe(weight), inFeatures);
      const magnitude = settings.isDora
        ? make('lora_magnitude_vector', [outFeatures], { kind: 'derived', recipe: lengths }, held.magnitude)
        : undefined;
      return { settings, a, b, magnitude };
    };
    this.byName.set(name, weight.device === 'meta' ? withMetaParameters(factors) : factors());
  }

  /** The input of the update: in training some of it is dropped, the same in every division. */
  private dropped(x: Tensor, { dropout: p }: LoraSettings): Tensor {
    if (p === 0 || !this.linear.training) return x;
    const { held, part, position, fullShape } = this.linear.weight.placement;
    const ofColumns = held.kind === 'shard' && held.dim === 1;
    return dropout(x, p, `${this.path}.lora_dropout.${this.adapters.active}`, {
      columns: ofColumns ? fullShape[1] : undefined,
      part: ofColumns ? part : held.kind === 'partial' ? position.rank : 0,
    });
  }

  remove(name: string): void {
    this.byName.delete(name);
    for (const { byName } of Object.values(this.kinds)) byName.delete(name);
  }

  forward(x: Tensor, base: (bias: Parameter | undefined) => Tensor, bias: Parameter | undefined): Tensor {
    const { a, b, magnitude, settings } = this.acting!;
    if (!magnitude) return addLowRank(base(bias), this.dropped(x, settings), a, b, settings.factor);
    if (settings.dropout > 0 && this.linear.training)
      throw new Error(
        `${this.path}: an adapter with lengths of rows (DoRA) and dropout is not supported in training; call eval(), or set lora_dropout to 0`,
      );
    const product = addLowRank(base(undefined), x, a, b, settings.factor);
    using squares = adaptedSquares(this.linear.weight, this.acting!);
    const y = scaleColumns(product, magnitude, squares);
    return bias ? addBias(y, bias) : y;
  }
}

/**
 * Sums of squares of the rows of a weight with its update: (out) float32, of whole rows also where this rank has some columns of
 * them. The caller disposes it. Collective then.
 */
export function adaptedSquares(weight: Parameter, { a, b, settings }: LoraFactors): Tensor {
  const squares = squaresOfRows(weight, a, b, settings.factor);
  const { held } = weight.placement;
  if (held.kind === 'shard' && held.dim === 1) b.gradSum?.allReduce(squares.handle, 'sum');
  return squares;
}

/**
 * How the factors of a weight are held that is held so. Rows divided: so are those of B, and each rank makes a part of the gradient
 * of A. Columns divided: so are those of A, and each rank makes a part of the gradient of B.
 */
function heldBy(weight: AxisPlacement): Record<'a' | 'b' | 'magnitude', AxisPlacement> {
  if (weight.kind !== 'shard') return { a: weight, b: weight, magnitude: weight };
  const partial: AxisPlacement = { kind: 'partial' };
  if (weight.dim === 0) return { a: partial, b: weight, magnitude: weight };
  return { a: weight, b: partial, magnitude: partial };
}

/** The values of a whole weight: its own, and those that it starts with where it is on meta or divided. */
function wholeRecipe(weight: Parameter): Recipe {
  return weight.device === 'meta' || !weight.placement.isWhole ? weight.wholeInit() : currentRecipe(weight);
}

/** Gives the layers of `model` an adapter, which is not active yet. `sumOf` answers for a model that is divided over ranks. */
export function addAdapter(
  model: Module,
  name: string,
  adapter: ModelAdapter,
  sumOf: SumOf = () => undefined,
): ModelAdapters {
  const adapters = adapted.get(model) ?? {
    byName: new Map(),
    active: undefined,
    disabled: 0,
    merged: undefined,
    unmerged: new Map(),
  };
  adapted.set(model, adapters);
  const modules = new Map(model.namedModules());
  for (const [path, settings] of adapter.layers) {
    const linear = modules.get(path) as Linear;
    linear.adapter ??= new LoraLayer(linear, path, adapters);
    (linear.adapter as LoraLayer).add(name, settings, sumOf);
  }
  adapters.byName.set(name, adapter);
  return adapters;
}

/** Takes an adapter from `model` again. What it trained of the model itself stays as it is. */
export function removeAdapter(model: Module, name: string): void {
  const adapters = adapted.get(model);
  adapters?.byName.delete(name);
  if (adapters?.active === name) adapters.active = undefined;
  if (adapters?.byName.size === 0) adapted.delete(model);
  for (const module of model.modules())
    if (module instanceof Linear && module.adapter instanceof LoraLayer) module.adapter.remove(name);
}

/** Gives `to`, a model of the same layers, fresh adapters as those of `from`. */
export function copyAdapters(from: Module, to: Module, sumOf: SumOf): void {
  const adapters = adapted.get(from);
  if (!adapters) return;
  for (const [name, adapter] of adapters.byName) addAdapter(to, name, adapter, sumOf).active = adapters.active;
}

/** The layers that have adapter `name`, with its factors, by path. */
export function* layersOf(model: Module, name: string): Generator<[string, Linear, LoraFactors]> {
  for (const [path, module] of model.namedModules()) {
    if (!(module instanceof Linear) || !(module.adapter instanceof LoraLayer)) continue;
    const factors = module.adapter.get(name);
    if (factors) yield [path, module, factors];
  }
}

/**
 * The parameters of `model` by name, without those of adapters: what a checkpoint of it holds. Error: an adapter is active, so that
 * these are not what the model computes with.
 */
export function ownParametersOf(model: Module): [string, Parameter][] {
  const adapters = adapted.get(model);
  if (!adapters) return [...model.namedParameters()];
  const { active, merged } = adapters;
  if (active !== undefined && active !== merged)
    throw new Error(
      `savePretrained: the adapter "${active}" is not in the weights; saveAdapter writes it, mergeAdapter puts it into them`,
    );
  const factors = new Set<Parameter>();
  for (const name of adapters.byName.keys())
    for (const [, , { a, b, magnitude }] of layersOf(model, name))
      for (const factor of [a, b, magnitude]) if (factor) factors.add(factor);
  return [...model.namedParameters()].filter(([, parameter]) => !factors.has(parameter));
}
