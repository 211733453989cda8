// Applies a family's plan to a model: every parameter becomes this rank's part, and collectives go around the modules.
import type { DeviceMesh } from '../../distributed/device_mesh.ts';
import type { ProcessGroup } from '../../distributed/process_group.ts';
import { type CausalLM, CausalLMHead, type ForwardContext } from '../../models/causal_lm.ts';
import { Dropout } from '../../nn/dropout.ts';
import { hook } from '../../nn/hook.ts';
import { Embedding, Linear } from '../../nn/layers.ts';
import type { Module } from '../../nn/module.ts';
import { Parameter } from '../../nn/parameter.ts';
import { type AxisPlacement, type AxisPosition, Placement } from '../../nn/placement.ts';
import { type ModulePlan, type ParallelPlan, partsOf, placementFor } from '../../nn/plan.ts';
import type { Tensor } from '../../tensor/tensor.ts';
import type { TensorParallel } from './context.ts';
import { inputCheck } from './debug.ts';
import { gathered, RowParallelLinear, summed, VocabParallelEmbedding, VocabParallelHead } from './layers.ts';
import { checkDivides, plannedFor, rulesOf } from './placements.ts';

/** How a module runs whose weight is divided: what takes its place, or undefined where it stays as it is. */
interface DividedLayer {
  readonly of: abstract new (...args: never[]) => Module;
  readonly dim: 0 | 1;
  run(module: Module, model: CausalLM, tp: TensorParallel): Module | undefined;
}

// The first that fits is taken.
const dividedLayers: readonly DividedLayer[] = [
  {
    of: CausalLMHead,
    dim: 0,
    run: (module, model, tp) => new VocabParallelHead((module as Linear).weight, model.config.vocabSize, tp),
  },
  { of: Embedding, dim: 0, run: (module, _, tp) => new VocabParallelEmbedding((module as Embedding).weight, tp) },
  {
    of: Linear,
    dim: 1,
    run: (module, _, tp) => new RowParallelLinear((module as Linear).weight, (module as Linear).bias, tp),
  },
  {
    of: Linear,
    dim: 0,
    run: (module) => {
      // A gradient that is summed itself keeps its place in the order of the group's collectives.
      (module as Linear).deferWeightGrad = !(module as Linear).weight.gradSum;
      return undefined;
    },
  },
];

/**
 * Divides `model` (fresh, in place) over the tensor axis of `mesh`. Parameters get their placement; names stay. Errors, before
 * anything is changed, name what does not divide and by how much. Collective where key/value heads are replicated.
 */
export function parallelize(model: CausalLM, plan: ParallelPlan, tp: TensorParallel, mesh: DeviceMesh): void {
  const rules = rulesOf(model, plan);
  checkDivides(model, rules, tp.size);
  const position: AxisPosition = { axis: 'tensor', size: tp.size, rank: tp.rank };
  const parts = new Map<Parameter, Parameter>(); // tied ones stay tied
  const modules = new Map(model.namedModules());
  for (const [path, module] of modules) {
    const rule = rules.get(path);
    if (!rule) continue;
    for (const [name, parameter] of [...module.ownParameters()]) {
      let part = parts.get(parameter);
      if (!part) {
        const held = placementFor(plannedFor(rule, name), model.config, tp.size);
        part = divided(parameter, new Placement(parameter.shape, ofRows(held, tp), position));
        part.gradSum = gradientGroup(part.placement, mesh);
        parts.set(parameter, part);
      }
      Reflect.set(module, name, part);
    }
    const instead = divideModule(model, path, module, rule, tp);
    if (instead) replace(modules, path, instead);
  }
  shareOutRows(model, tp);
  for (const module of model.modules()) if (module instanceof Dropout) module.part = tp.rank;
}

/** What sees a part of the rows alone, as everything between the layers does with sequence parallelism, makes a part of its gradient. */
function ofRows(held: AxisPlacement, tp: TensorParallel): AxisPlacement {
  return held.kind === 'replicate' && tp.sequenceParallel ? { kind: 'partial' } : held;
}

/** The ranks that each make a part of a gradient; undefined where it is complete. */
export function gradientGroup({ gradientParts, position }: Placement, mesh: DeviceMesh): ProcessGroup | undefined {
  if (gradientParts === 1) return undefined;
  const { axis, size } = position;
  if (gradientParts === size) return mesh.group(axis);
  return mesh.refold([axis], { part: size / gradientParts, copy: gradientParts }).group('copy');
}

/** Puts collectives around a module whose parameters are divided; what takes its place, if something does. */
function divideModule(
  model: CausalLM,
  path: string,
  module: Module,
  rule: ModulePlan,
  tp: TensorParallel,
): Module | undefined {
  for (const [property, units] of Object.entries(rule.counts ?? {})) {
    const count = Reflect.get(module, property) as number;
    Reflect.set(module, property, count / partsOf(units, model.config, tp.size));
  }
  if (rule.input === 'whole')
    hook(module, 'forward', (inner, [x, ...rest]) => inner(gathered(x as Tensor, tp), ...rest));
  const redistribute = rule.output && { partial: summed, whole: gathered }[rule.output];
  if (redistribute) hook(module, 'forward', (inner, args) => redistribute(inner(...args) as Tensor, tp));
  const weight = Reflect.get(module, 'weight') as Parameter | undefined;
  const held = weight?.placement.held;
  if (held?.kind !== 'shard') return undefined;
  const layer = dividedLayers.find(({ of, dim }) => module instanceof of && dim === held.dim);
  if (!layer)
    throw new TypeError(
      `transform: the plan divides dimension ${held.dim} of ${path}.weight, and no layer runs a ${module.constructor.name} so`,
    );
  return layer.run(module, model, tp);
}

/** Rows between the layers are divided equally; all of them again while the model generates, where one row cannot be divided. */
function shareOutRows(model: CausalLM, tp: TensorParallel): void {
  const check = inputCheck(tp.group);
  hook(model, 'hidden', (inner, [ids, positions, context]) => {
    check?.(ids as Tensor);
    const { balance } = context as ForwardContext;
    // Every rank makes the whole gradient of the routers' loss, and gradients of routers are summed.
    const shared = balance && { ...balance, gradScale: balance.gradScale / tp.size };
    return inner(ids, positions, { ...(context as ForwardContext), balance: shared });
  });
  if (!tp.sequenceParallel) return;
  model.rowMultiple = tp.size;
  hook(model, 'step', (inner, args) => {
    tp.sequenceParallel = false;
    try {
      return inner(...args);
    } finally {
      tp.sequenceParallel = true;
    }
  });
}

function divided(whole: Parameter, placement: Placement): Parameter {
  const part = new Parameter(whole.shape, whole.dtype, whole.init, placement);
  part.name = whole.name;
  part.requiresGrad = whole.requiresGrad;
  return part;
}

/** Puts `module` at `path`; `modules` are those of the model, by path. */
function replace(modules: ReadonlyMap<string, Module>, path: string, module: Module): void {
  const dot = path.lastIndexOf('.');
  const key = path.slice(dot + 1);
  const parent = modules.get(path.slice(0, Math.max(0, dot)))!;
  if (!Reflect.has(parent, key))
    throw new Error(`transform: ${path} cannot be replaced; its parent has no such property`);
  module.training = parent.training;
  Reflect.set(parent, key, module);
}
