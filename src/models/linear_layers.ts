// The layers of a model whose weights may have few bits.
import { Linear } from '../nn/layers.ts';
import type { Module } from '../nn/module.ts';
import { CausalLMHead } from './causal_lm.ts';

/** All linear layers, by path, but the head and those whose weights another module reads by itself (experts). */
export function* linearLayers(model: Module): Generator<[string, Linear]> {
  const read = new Set<Module>();
  for (const module of model.modules()) {
    if (!module.isAtomic) continue;
    for (const [, child] of module.namedChildren())
      if (!(child instanceof Linear)) for (const below of child.modules()) read.add(below);
  }
  for (const [path, module] of model.namedModules())
    if (module instanceof Linear && !(module instanceof CausalLMHead) && !read.has(module)) yield [path, module];
}
