// Applies a family's plan to a model: every parameter becomes this rank's part, and collectives go around the modules.
import type { ProcessGroup } from '../../distributed/process_group.ts';
import type { CausalLM } from '../../models/causal_lm.ts';
import { hook } from '../../nn/hook.ts';
import type { Linear } from '../../nn/layers.ts';
import type { Module } from '../../nn/module.ts';
import { Parameter } from '../../nn/parameter.ts';
import type { TensorSplit } from '../../nn/split.ts';
import type { Tensor } from '../../tensor/tensor.ts';
import type { TensorParallel } from './context.ts';
import { gathered, RowParallelLinear, summed, VocabParallelEmbedding, VocabParallelHead } from './layers.ts';
import type { TensorParallelPlan, TensorParallelStyle } from './plan.ts';
import { checkDivides, splitOf, stylesOf } from './splits.ts';

/** A module whose heads the ranks share out. */
interface HeadModule {
  heads: number;
  kvHeads: number;
}

/** A block with a part of its gradient that every rank makes whole: it is scaled so that the sum over ranks is right. */
interface AuxiliaryGradient {
  auxGradScale: number;
}

/**
 * Divides `model` (fresh, in place) over the group. Parameters get a `split`; names stay. Errors, before anything is
 * changed, name what does not divide and by how much. Collective where key/value heads are replicated.
 */
export function parallelize(model: CausalLM, plan: TensorParallelPlan, tp: TensorParallel): void {
  const styles = stylesOf(model, plan);
  checkDivides(model, styles, tp.size);
  const sums = new GradientSums(tp);
  const parts = new Map<Parameter, Parameter>(); // tied ones stay tied
  for (const [path, module] of [...model.namedModules()]) {
    const style = styles.get(path);
    if (!style) continue;
    for (const [name, parameter] of [...module.ownParameters()]) {
      let part = parts.get(parameter);
      if (!part) {
        part = divided(parameter, splitOf(style, name, parameter, model.config, tp.size, tp.rank));
        part.gradSum = sums.of(style, part.split!);
        parts.set(parameter, part);
      }
      Reflect.set(module, name, part);
    }
    placeCollectives(model, path, module, style, tp);
  }
}

function placeCollectives(
  model: CausalLM,
  path: string,
  module: Module,
  style: TensorParallelStyle,
  tp: TensorParallel,
): void {
  const { weight, bias } = module as Linear;
  switch (style) {
    case 'vocabulary': {
      const isHead = module === model.outputHead;
      const vocab = model.config.vocabSize;
      replace(model, path, isHead ? new VocabParallelHead(weight, vocab, tp) : new VocabParallelEmbedding(weight, tp));
      break;
    }
    case 'column':
    case 'keyValue':
      // A gradient that is summed itself keeps its place in the order of the group's collectives.
      (module as Linear).deferWeightGrad = !weight.gradSum;
      break;
    case 'row':
      replace(model, path, new RowParallelLinear(weight, bias, tp));
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
    case 'finalNorm':
      hook(module, 'forward', (inner, args) => gathered(inner(...args) as Tensor, tp));
      break;
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

/** The groups over which gradients are summed, where each rank makes a part of them. */
class GradientSums {
  private readonly tp: TensorParallel;
  private readonly replicas = new Map<number, ProcessGroup>();

  constructor(tp: TensorParallel) {
    this.tp = tp;
  }

  of(style: TensorParallelStyle, split: TensorSplit): ProcessGroup | undefined {
    if (split.dim !== undefined) return split.replicas > 1 ? this.replicaGroup(split.replicas) : undefined;
    // What is whole on every rank gets whole gradients, unless the rank sees its own heads or rows only.
    return style === 'partial' || this.tp.sequenceParallel ? this.tp.group : undefined;
  }

  /** Ranks that hold the same key/value heads. */
  private replicaGroup(count: number): ProcessGroup {
    if (count === this.tp.size) return this.tp.group;
    let group = this.replicas.get(count);
    if (!group) {
      const first = this.tp.rank - (this.tp.rank % count);
      group = this.tp.group.split(Array.from({ length: count }, (_, i) => first + i))!;
      this.replicas.set(count, group);
    }
    return group;
  }
}
