// Wrap policies: which modules become FSDP units. A policy gets the root and gives the modules, in any order; the root is
// always a unit itself.
import { type Module, ModuleList } from '../../nn/module.ts';

export type WrapPolicy = (root: Module) => readonly Module[];

type ModuleClass = abstract new (...args: never[]) => Module;

/**
 * Modules of the given classes. Without classes: what the model advises, which for models of this package are the decoder layers,
 * and embedding and head where they are not tied. Error: a class of which the model has no module.
 */
export function transformerAutoWrapPolicy(classes?: readonly ModuleClass[]): WrapPolicy {
  return (root) => {
    if (!classes) {
      if (root.unitModules) return root.unitModules;
      throw new Error(
        `transformerAutoWrapPolicy: ${root.constructor.name} is not a model of this package; name the layer classes: transformerAutoWrapPolicy([MyLayer])`,
      );
    }
    const all = [...root.modules()];
    for (const layerClass of classes) {
      if (!all.some((module) => module instanceof layerClass)) {
        throw new Error(
          `transformerAutoWrapPolicy: could not find the layer class ${layerClass.name} in ${root.constructor.name}`,
        );
      }
    }
    const units = new Set(all.filter((module) => classes.some((layerClass) => module instanceof layerClass)));
    const layers = new Set(root.repeatedModules);
    for (const module of root.unitModules ?? []) if (!layers.has(module)) units.add(module);
    return [...units];
  };
}

/** Modules chosen by a function of module and name. */
export function lambdaAutoWrapPolicy(choose: (module: Module, name: string) => boolean): WrapPolicy {
  return (root) =>
    [...root.namedModules()].filter(([name, module]) => name && choose(module, name)).map(([, module]) => module);
}

/** The given modules. */
export function moduleListPolicy(modules: readonly Module[]): WrapPolicy {
  return (root) => {
    const own = new Set(root.modules());
    const foreign = modules.find((module) => !own.has(module));
    if (foreign)
      throw new Error(
        `moduleListPolicy: a ${foreign.constructor.name} of the list is not part of ${root.constructor.name}`,
      );
    return modules;
  };
}

/**
 * Wraps from the leaves up whenever at least `minNumParams` elements are not wrapped yet. Default 1e8, as in PyTorch. What an
 * atomic module holds stays with it.
 */
export function sizeBasedAutoWrapPolicy(options: { minNumParams?: number | undefined } = {}): WrapPolicy {
  const { minNumParams = 1e8 } = options;
  return (root) => {
    const units: Module[] = [];
    const visit = (module: Module): number => {
      let left = 0;
      for (const [, parameter] of module.ownParameters()) left += parameter.numel;
      for (const [, child] of module.namedChildren()) left += module.isAtomic ? numelBelow(child) : visit(child);
      if (module === root || module instanceof ModuleList || left < minNumParams) return left;
      units.push(module);
      return 0;
    };
    visit(root);
    return units;
  };
}

function numelBelow(module: Module): number {
  let sum = 0;
  for (const parameter of module.parameters()) sum += parameter.numel;
  return sum;
}
