// Applies a family's plan to a model: every parameter becomes this rank's part, and collectives go around the modules.
import type { ProcessGroup } from '../../distributed/process_group.ts';
import type { CausalLM } from '../../models/causal_lm.ts';
import { hook } from '../../nn/hook.ts';
import { Embedding, Linear } from '../../nn/layers.ts';
import type { Module } from '../../nn/module.ts';
import { Parameter } from '../../nn/parameter.ts';
import { type SplitDim, TensorSplit } from '../../nn/split.ts';
import type { Tensor } from '../../tensor/tensor.ts';
import type { TensorParallel } from './context.ts';
import { gathered, RowParallelLinear, summed, VocabParallelEmbedding, VocabParallelHead } from './layers.ts';
import type { TensorParallelPlan, TensorParallelStyle } from './plan.ts';

/** A module whose heads the ranks share out. */
interface HeadModule {
  heads: number;
  kvHeads: number;
}

/** A block with a part of its gradient that every rank makes whole: it is scaled so that the sum over ranks is right. */
interface AuxiliaryGradient {
  auxGradScale: number;
}

/** The style of every module of `model`, by path. Errors: a module with parameters of which the plan says nothing. */
function stylesOf(model: CausalLM, plan: TensorParallelPlan): Map<string, TensorParallelStyle> {
  const rules = Object.entries(plan).map(([path, style]) => ({ parts: path.split('.'), style }));
  const styles = new Map<string, TensorParallelStyle>();
  for (const [path, module] of model.namedModules()) {
    const parts = path.split('.');
    const rule = rules.find(
      (candidate) =>
        candidate.parts.length === parts.length &&
        candidate.parts.every((part, i) => part === '*' || part === parts[i]),
    );
    if (rule) styles.set(path, rule.style);
    else if ([...module.ownParameters()].length > 0)
      throw new Error(`transform: the tensor-parallel plan of ${model.config.modelType} does not name ${path}`);
  }
  return styles;
}

/**
 * Divides `model` (fresh, in place) over the group. Parameters get a `split`; names stay. Errors, before anything is
 * changed, name what does not divide and by how much. Collective where key/value heads are replicated.
 */
export function parallelize(model: CausalLM, plan: TensorParallelPlan, tp: TensorParallel): void {
  const styles = stylesOf(model, plan);
  checkDivides(model, styles, tp.size);
  const replicas = new Replicas(tp);
  const parts = new Map<Parameter, Parameter>();
  const split = (parameter: Parameter, dim: SplitDim, count: number = tp.size): Parameter => {
    let part = parts.get(parameter);
    if (!part) {
      part = divided(parameter, new TensorSplit(parameter.shape, dim, tp.size, tp.rank, count));
      parts.set(parameter, part);
    }
    return part;
  };
  const { config } = model;
  const kvParts = Math.min(config.numKeyValueHeads, tp.size);
  for (const [path, module] of [...model.namedModules()]) {
    const style = styles.get(path);
    if (!style) continue;
    switch (style) {
      case 'vocabulary': {
        const weight = split((module as Linear).weight, 0);
        const isHead = module === model.outputHead;
        replace(
          model,
          path,
          isHead ? new VocabParallelHead(weight, config.vocabSize, tp) : new VocabParallelEmbedding(weight, tp),
        );
        break;
      }
      case 'column':
      case 'keyValue':
        for (const [name, parameter] of [...module.ownParameters()]) {
          const part = split(parameter, 0, style === 'keyValue' ? kvParts : tp.size);
          if (part.split!.replicas > 1) part.gradSum = replicas.of(part.split!.replicas);
          Reflect.set(module, name, part);
        }
        break;
      case 'row': {
        const { weight, bias } = module as Linear;
        const whole = bias && split(bias, undefined);
        if (whole && tp.sequenceParallel) whole.gradSum = tp.group;
        replace(model, path, new RowParallelLinear(split(weight, 1), whole, tp));
        break;
      }
      case 'rowWeight':
        (module as Linear).weight = split((module as Linear).weight, 1);
        break;
      case 'attention': {
        const attention = module as Module & HeadModule;
        attention.heads /= tp.size;
        attention.kvHeads /= Math.min(attention.kvHeads, tp.size);
        gatherInput(module, tp);
        break;
      }
      case 'gathered':
        gatherInput(module, tp);
        break;
      case 'experts':
        if ('auxGradScale' in module) (module as Module & AuxiliaryGradient).auxGradScale /= tp.size;
        gatherInput(module, tp);
        hook(module, 'forward', (inner, args) => summed(inner(...args) as Tensor, tp));
        break;
      case 'perRow':
      case 'finalNorm':
      case 'partial':
        for (const [name, parameter] of [...module.ownParameters()]) {
          const whole = split(parameter, undefined);
          if (style === 'partial' || tp.sequenceParallel) whole.gradSum = tp.group;
          Reflect.set(module, name, whole);
        }
        if (style === 'finalNorm') hook(module, 'forward', (inner, args) => gathered(inner(...args) as Tensor, tp));
        break;
    }
  }
}

function gatherInput(module: Module, tp: TensorParallel): void {
  hook(module, 'forward', (inner, [x, ...rest]) => inner(gathered(x as Tensor, tp), ...rest));
}

function divided(whole: Parameter, split: TensorSplit): Parameter {
  const part = new Parameter(whole.shape, whole.dtype, whole.init, split);
  part.name = whole.name;
  part.requiresGrad = whole.requiresGrad;
  return part;
}

/** Puts `module` at `path` below `root`. */
function replace(root: Module, path: string, module: Module): void {
  const dot = path.lastIndexOf('.');
  const key = path.slice(dot + 1);
  const parent = [...root.namedModules()].find(([name]) => name === path.slice(0, Math.max(0, dot)))![1];
  if (!Reflect.has(parent, key))
    throw new Error(`transform: ${path} cannot be replaced; its parent has no such property`);
  module.training = parent.training;
  Reflect.set(parent, key, module);
}

/** The groups of ranks that hold the same key/value heads, made when first wanted. */
class Replicas {
  private readonly tp: TensorParallel;
  private readonly groups = new Map<number, ProcessGroup>();

  constructor(tp: TensorParallel) {
    this.tp = tp;
  }

  of(count: number): ProcessGroup {
    if (count === this.tp.size) return this.tp.group;
    let group = this.groups.get(count);
    if (!group) {
      const first = this.tp.rank - (this.tp.rank % count);
      group = this.tp.group.split(Array.from({ length: count }, (_, i) => first + i))!;
      this.groups.set(count, group);
    }
    return group;
  }
}

function checkDivides(model: CausalLM, styles: ReadonlyMap<string, TensorParallelStyle>, size: number): void {
  const { numAttentionHeads, numKeyValueHeads, modelType } = model.config;
  const what = `transform: ${modelType} with tensor-parallel degree ${size}`;
  if (numAttentionHeads % size !== 0)
    throw new RangeError(`${what}: the ${numAttentionHeads} attention heads do not divide by ${size}`);
  const fewer = numKeyValueHeads < size;
  if (fewer ? size % numKeyValueHeads !== 0 : numKeyValueHeads % size !== 0)
    throw new RangeError(
      `${what}: ${numKeyValueHeads} key/value heads neither divide by ${size} nor can be replicated over ${size} ranks`,
    );
  const modules = new Map(model.namedModules());
  for (const [path, style] of styles) {
    const module = modules.get(path)!;
    const wants = style === 'row' || style === 'rowWeight' ? 1 : style === 'column' ? 0 : undefined;
    if (wants !== undefined) {
      if (!(module instanceof Linear))
        throw new TypeError(`${what}: the plan calls ${path} ${style}, but it is no Linear`);
      const length = module.weight.size(wants);
      if (length % size !== 0)
        throw new RangeError(
          `${what}: the ${length} ${wants === 0 ? 'output' : 'input'} features of ${path} do not divide by ${size}`,
        );
    }
    if (style === 'vocabulary' && !(module instanceof Linear || module instanceof Embedding))
      throw new TypeError(`${what}: the plan calls ${path} vocabulary, but it is no embedding and no head`);
    if (style === 'attention' && !('heads' in module && 'kvHeads' in module))
      throw new TypeError(`${what}: the plan calls ${path} attention, but it has no heads and kvHeads`);
  }
}
