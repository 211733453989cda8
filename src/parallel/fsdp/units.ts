// From a module tree to units and their buckets: which parameters each holds, checked before any memory is taken.
import type { Module } from '../../nn/module.ts';
import type { Parameter } from '../../nn/parameter.ts';
import { isFloating } from '../../tensor/dtype.ts';
import type { BucketDtypes, BucketShape } from './bucket.ts';
import { FlatLayout } from './flat.ts';
import type { ShardGroups } from './groups.ts';
import type { FsdpOptions, MixedPrecision } from './options.ts';
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
 * The buckets of a unit: one for each dtype and use of its parameters, in the order in which they first come, trained ones first.
 */
export function bucketsOf(
  { name, parameters }: Pick<PlannedUnit, 'name' | 'parameters'>,
  groups: ShardGroups,
  mixedPrecision: MixedPrecision | undefined,
): BucketShape[] {
  const buckets = new Map<string, { dtypes: BucketDtypes; isTrainable: boolean; members: Parameter[] }>();
  const ordered = [...parameters.filter((p) => p.requiresGrad), ...parameters.filter((p) => !p.requiresGrad)];
  for (const parameter of ordered) {
    const dtypes = dtypesOf(parameter, mixedPrecision);
    const isTrainable = parameter.requiresGrad;
    const key = [dtypes.master, dtypes.compute, isTrainable].join();
    const bucket = buckets.get(key) ?? { dtypes, isTrainable, members: [] };
    bucket.members.push(parameter);
    buckets.set(key, bucket);
  }
  return [...buckets.values()].map(({ dtypes, isTrainable, members }) => ({
    title: titleOf(name),
    layout: new FlatLayout(members, groups.shard.size),
    groups,
    dtypes,
    isTrainable,
  }));
}

function dtypesOf({ dtype: own }: Parameter, mixedPrecision: MixedPrecision | undefined): BucketDtypes {
  // Frozen integers (quantised weights) stay what they are.
  if (!isFloating(own)) return { master: own, compute: own, reduce: 'float32' };
  const compute = mixedPrecision?.paramDtype ?? own;
  return {
    master: mixedPrecision ? 'float32' : own,
    compute,
    reduce: mixedPrecision?.reduceDtype ?? (mixedPrecision?.paramDtype ? compute : own),
  };
}
