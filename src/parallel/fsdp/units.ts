// From a module tree to units: which parameters each holds, checked before any memory is taken.
import type { Module } from '../../nn/module.ts';
import type { Parameter } from '../../nn/parameter.ts';
import { isFloating } from '../../tensor/dtype.ts';
import type { FsdpOptions } from './options.ts';

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
 * Errors: tied parameters in different units, mixed dtypes or integer parameters in one, a part of an atomic module.
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
    }
    checkDtypes(unit);
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

function checkDtypes(unit: PlannedUnit): void {
  const first = unit.parameters[0];
  for (const parameter of unit.parameters) {
    if (!isFloating(parameter.dtype)) {
      throw new Error(
        `FSDP: parameter ${parameter.name} is ${parameter.dtype}; only floating parameters can be sharded`,
      );
    }
    if (parameter.dtype !== first!.dtype) {
      throw new Error(
        `FSDP: the parameters of ${unit.name || 'the root unit'} have different dtypes: ${first!.name} is ${first!.dtype}, ${parameter.name} is ${parameter.dtype}`,
      );
    }
  }
}
