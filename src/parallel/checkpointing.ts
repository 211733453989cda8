// Activation checkpointing: a module keeps only its inputs, or few things more, and runs its forward again during backward.

import { currentRandomness, during } from '../autograd/randomness.ts';
import { KeptResults } from '../autograd/recompute.ts';
import { hook } from '../nn/hook.ts';
import type { Module } from '../nn/module.ts';
import { runBackward } from '../tensor/engine.ts';
import { isGradEnabled, noGrad, withGrad } from '../tensor/grad_mode.ts';
import { type GradNode, nextSequence } from '../tensor/node.ts';
import { scope, track } from '../tensor/scope.ts';
import { Tensor } from '../tensor/tensor.ts';
import type { Recomputation } from './recomputation.ts';

/**
 * Checkpoints the modules that `choose` accepts; default: the decoder layers of a model of this package. Call it before
 * FSDP wraps the model. A module's forward takes tensors first and must return one tensor. Returns how many were changed.
 * `recompute`: default `all`; gradients are the same bits with either.
 */
export function applyActivationCheckpointing(
  model: Module,
  choose?: (module: Module) => boolean,
  { recompute = 'all' }: { recompute?: Recomputation | undefined } = {},
): number {
  const chosen = choose ? [...model.modules()].filter(choose) : model.repeatedModules;
  for (const module of chosen) checkpointModule(module, recompute === 'selective');
  return chosen.length;
}

function checkpointModule(module: Module, isSelective: boolean): void {
  hook(module, 'forward', (inner, args) =>
    isGradEnabled()
      ? checkpoint(inner as (...args: unknown[]) => Tensor, args, isSelective ? new KeptResults() : undefined)
      : inner(...args),
  );
}

function checkpoint(fn: (...args: unknown[]) => Tensor, args: unknown[], results: KeptResults | undefined): Tensor {
  // A graph is recorded even when no input wants a gradient: the parameters inside do.
  const inputs = args.map((arg) => (arg instanceof Tensor && arg.requiresGrad ? arg : undefined));
  const kept = args.map((arg) => (arg instanceof Tensor ? arg.detach() : keepDeep(arg)));
  const randomness = currentRandomness();
  const first = (): Tensor => fn(...args);
  const out = noGrad(() => results?.keep(first) ?? first());
  const node: GradNode = {
    name: 'checkpoint',
    sequence: nextSequence(),
    inputs,
    backward: (gradOut) => {
      const again = kept.map((arg, i) => {
        const tensor = arg;
        if (tensor instanceof Tensor && inputs[i]) {
          const leaf = tensor.detach();
          leaf.requiresGrad = true;
          return leaf;
        }
        return arg;
      });
      scope(() => {
        const once = (): Tensor => fn(...again);
        const rerun = (): Tensor => withGrad(true, () => results?.replay(once) ?? once());
        const result = during(randomness, rerun); // draws what forward drew
        runBackward(result, gradOut);
      });
      return again.map((leaf, i) => {
        if (!inputs[i]) return undefined;
        const tensor = leaf as Tensor;
        const grad = tensor.grad;
        tensor.dispose();
        return grad;
      });
    },
    release: () => {
      results?.release();
      for (const arg of kept) disposeDeep(arg);
    },
    done: false,
  };
  out.requiresGrad = true;
  out.gradFn = node;
  track(out);
  return out;
}

// Tensors inside plain objects (the context of a layer) are kept by handles of their own too.
function keepDeep(value: unknown): unknown {
  if (value instanceof Tensor) return value.detach();
  if (value === null || typeof value !== 'object' || Object.getPrototypeOf(value) !== Object.prototype) return value;
  return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, keepDeep(item)]));
}

function disposeDeep(value: unknown): void {
  if (value instanceof Tensor) value.dispose();
  else if (value !== null && typeof value === 'object' && Object.getPrototypeOf(value) === Object.prototype) {
    for (const item of Object.values(value)) disposeDeep(item);
  }
}
