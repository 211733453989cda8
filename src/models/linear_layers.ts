// The layers of a model that can have adapters, and weights of few bits.
import { Linear } from '../nn/layers.ts';
import type { Module } from '../nn/module.ts';
import { CausalLMHead } from './causal_lm.ts';

/**
 * All linear layers, by path, but the head and those in a module that runs what is below it together (experts and their router, which
 * are no linear layers to Transformers either).
 */
export function* linearLayers(model: Module): Generator<[string, Linear]> {
  const together = new Set<Module>();
  for (const module of model.modules())
    if (module.isAtomic) for (const below of module.modules()) if (below !== module) together.add(below);
  for (const [path, module] of model.namedModules())
    if (module instanceof Linear && !(module instanceof CausalLMHead) && !together.has(module)) yield [path, module];
}
