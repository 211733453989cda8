// From a module tree to units and their buckets: which parameters each holds, checked before any memory is taken, and agreed on by
// all ranks before anything is sent.

import { dist } from '../../distributed/index.ts';
import type { Module } from '../../nn/module.ts';
import type { Parameter } from '../../nn/parameter.ts';
import { isFloating } from '../../tensor/dtype.ts';
import { computeDevice } from '../../tensor/streams.ts';
import type { BucketDtypes, BucketShape } from './bucket.ts';
import { FlatLayout } from './flat.ts';
import type { ShardGroups } from './groups.ts';
import { compareManifests, manifestOf } from './manifest.ts';
import type { FsdpOptions, MixedPrecision } from './options.ts';
import { checkSource, type WeightSource } from './source.ts';
import { titleOf } from './unit.ts';

/** A unit before it has memory. */
export interface PlannedUnit {
  /** Path of the module; '' for the root. */
  name: string;
  module: Module;
  parameters: Parameter[];
  /** Modules of the unit, breadth-first, without nested units and ignored modules. */
  modules: Module[];
}

/** Modules below `from`, breadth-first, not entering `borders`. */
function breadthFirst(from: Module, borders: ReadonlySet<Module>): Module[] {
  const seen = new Set<Module>([from]);
  const queue = [from];
  for (let i = 0; i < queue.length; i++) {
    for (const [, child] of queue[i]!.namedChildren()) {
      if (seen.has(child) || borders.has(child)) continue;
      seen.add(child);
      queue.push(child);
    }
  }
  return queue;
}

/**
 * The units of `root`, innermost first, the root last. `alreadyWrapped` are modules that an earlier FSDP holds.
 * Errors: tied parameters in different units, integer parameters that are trained, a part of an atomic module.
 */
export function planUnits(
  root: Module,
  chosen: readonly Module[],
  alreadyWrapped: ReadonlySet<Module>,
  options: FsdpOptions,
): PlannedUnit[] {
  const ignored = new Set<Module>();
  for (const module of options.ignoredModules ?? []) for (const below of module.modules()) ignored.add(below);
  const wrapped = new Set([...chosen, root].filter((module) => !ignored.has(module) && !alreadyWrapped.has(module)));
  checkAtomic(root, wrapped);
  const borders = new Set([...wrapped, ...ignored, ...alreadyWrapped]);
  const units: PlannedUnit[] = [];
  const holder = new Map<Parameter, string>();
  const visit = (module: Module, name: string, seen: Set<Module>): void => {
    if (seen.has(module)) return;
    seen.add(module);
    for (const [child, inner] of module.namedChildren()) visit(inner, name ? `${name}.${child}` : child, seen);
    if (!wrapped.has(module)) return;
    const modules = breadthFirst(module, borders);
    const parameters = new Set<Parameter>();
    for (const inner of modules) for (const [, parameter] of inner.ownParameters()) parameters.add(parameter);
    units.push({ name, module, parameters: [...parameters], modules });
  };
  visit(root, '', new Set());
  for (const unit of units) {
    for (const parameter of unit.parameters) {
      const other = holder.get(parameter);
      if (other !== undefined || parameter.owner) {
        throw new Error(
          `FSDP: parameter ${parameter.name} is tied across units ${other ?? 'of an earlier wrap'} and ${unit.name || 'the root'}; ` +
            'tied parameters must be in one unit: leave both modules to their common parent in the wrap policy',
        );
      }
      holder.set(parameter, unit.name || 'the root');
      if (parameter.requiresGrad && !isFloating(parameter.dtype))
        throw new Error(
          `FSDP: parameter ${parameter.name} is ${parameter.dtype}; only floating parameters can be trained (requiresGrad = false freezes it)`,
        );
    }
  }
  return units;
}

function checkAtomic(root: Module, wrapped: ReadonlySet<Module>): void {
  for (const [path, module] of root.namedModules()) {
    if (!module.isAtomic) continue;
    for (const [inner, below] of module.namedModules(path))
      if (below !== module && wrapped.has(below)) throw new Error(`FSDP: ${inner} is run by ${path}; wrap that`);
  }
}

/**
 * The units of `root`, by its wrap policy, and that they can be filled. With syncModuleStates the ranks compare what they planned,
 * and every rank throws when one cannot go on. `alreadyWrapped` as in planUnits. Collective with syncModuleStates.
 */
export function agreeOnUnits(
  root: Module,
  alreadyWrapped: ReadonlySet<Module>,
  source: WeightSource,
  options: FsdpOptions,
): PlannedUnit[] {
  let planned: PlannedUnit[] = [];
  let failure: unknown;
  try {
    const chosen = options.autoWrapPolicy ? options.autoWrapPolicy(root) : (root.unitModules ?? []);
    planned = planUnits(root, chosen, alreadyWrapped, options);
    checkSource(planned, source, options);
  } catch (error) {
    failure = error;
  }
  if (options.syncModuleStates)
    compareManifests(dist.group, manifestOf(planned), failure === undefined ? '' : (failure as Error).message);
  if (failure !== undefined) throw failure;
  return planned;
}

/**
 * The buckets of a unit: one for each shard and replicate group, dtype and use of its parameters, in the order in which they first
 * come, trained ones first. `groupsOf`: the groups that a parameter is divided over.
 */
export function bucketsOf(
  { name, parameters }: Pick<PlannedUnit, 'name' | 'parameters'>,
  groupsOf: (parameter: Parameter) => ShardGroups,
  mixedPrecision: MixedPrecision | undefined,
): BucketShape[] {
  const buckets = new Map<string, Omit<BucketShape, 'title' | 'layout'> & { members: Parameter[] }>();
  const laid = layOut(parameters);
  const ordered = [...laid.filter((p) => p.requiresGrad), ...laid.filter((p) => !p.requiresGrad)];
  for (const parameter of ordered) {
    const dtypes = dtypesOf(parameter, mixedPrecision);
    const isTrainable = parameter.requiresGrad;
    const groups = groupsOf(parameter);
    const key = [groups.shard.name, groups.replicate.name, dtypes.master, dtypes.compute, isTrainable].join();
    const bucket = buckets.get(key) ?? { groups, dtypes, isTrainable, members: [] };
    bucket.members.push(parameter);
    buckets.set(key, bucket);
  }
  return [...buckets.values()].map(({ members, ...shape }) => ({
    title: titleOf(name),
    layout: new FlatLayout(members, shape.groups.shard.size),
    ...shape,
  }));
}

/**
 * On devices vectors come before matrices: so weights of projections are neighbours where these have biases, and the biases are
 * too (nn/joint_linears.ts). On the CPU the order is that of the modules, since clipping sums squares in it.
 */
function layOut(parameters: readonly Parameter[]): readonly Parameter[] {
  if (computeDevice() === 'cpu') return parameters;
  const isVector = ({ shape }: Parameter): boolean => shape.length < 2;
  return [...parameters.filter(isVector), ...parameters.filter((parameter) => !isVector(parameter))];
}

function dtypesOf({ dtype: own, requiresGrad }: Parameter, mixedPrecision: MixedPrecision | undefined): BucketDtypes {
  // Frozen integers (quantised weights) stay what they are.
  if (!isFloating(own)) return { master: own, compute: own, reduce: 'float32' };
  const compute = mixedPrecision?.paramDtype ?? own;
  return {
    // What nobody updates needs no master.
    master: mixedPrecision && requiresGrad ? 'float32' : own,
    compute,
    reduce: mixedPrecision?.reduceDtype ?? (mixedPrecision?.paramDtype ? compute : own),
  };
}
