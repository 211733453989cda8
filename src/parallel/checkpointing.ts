// Activation checkpointing: a module keeps only its inputs and runs its forward again during backward.

import { hook } from '../nn/hook.ts';
import type { Module } from '../nn/module.ts';
import { runBackward } from '../tensor/engine.ts';
import { isGradEnabled, noGrad, withGrad } from '../tensor/grad_mode.ts';
import { type GradNode, nextSequence } from '../tensor/node.ts';
import { scope, track } from '../tensor/scope.ts';
import { Tensor } from '../tensor/tensor.ts';

/**
 * Checkpoints the modules that `choose` accepts; default: the decoder layers of a model of this package. Call it before
 * FSDP wraps the model. A module's forward takes tensors first and must return one tensor. Returns how many were changed.
 */
export function applyActivationCheckpointing(model: Module, choose?: (module: Module) => boolean): number {
  const chosen = choose ? [...model.modules()].filter(choose) : model.repeatedModules;
  for (const module of chosen) checkpointModule(module);
  return chosen.length;
}

function checkpointModule(module: Module): void {
  hook(module, 'forward', (inner, args) =>
    isGradEnabled() ? checkpoint(inner as (...args: unknown[]) => Tensor, args) : inner(...args),
  );
}

function checkpoint(fn: (...args: unknown[]) => Tensor, args: unknown[]): Tensor {
  // A graph is recorded even when no input wants a gradient: the parameters inside do.
  const inputs = args.map((arg) => (arg instanceof Tensor && arg.requiresGrad ? arg : undefined));
  const kept = args.map((arg) => (arg instanceof Tensor ? arg.detach() : keepDeep(arg)));
  const out = noGrad(() => fn(...args));
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
        const result = withGrad(true, () => fn(...again));
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
