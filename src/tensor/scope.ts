// Scopes free the tensors that were made inside them and are not returned. Every op result belongs to the innermost scope.
import { processState } from '../core/context.ts';
import { settle } from '../core/finally.ts';
import type { Tensor } from './tensor.ts';

interface Scopes {
  /** The tensors of the innermost scope; undefined outside. */
  current: Set<Tensor> | undefined;
}

const scopes: Scopes = processState<Scopes>('scopes', 'the innermost scope', { current: undefined });

/** @internal Called for every op result. */
export function track(tensor: Tensor): void {
  scopes.current?.add(tensor);
}

function collect(value: unknown, into: Set<unknown>): void {
  if (value === null || typeof value !== 'object' || into.has(value)) return;
  into.add(value);
  if (Array.isArray(value)) for (const item of value) collect(item, into);
  else if (value instanceof Map) for (const item of value.values()) collect(item, into);
  else if (Object.getPrototypeOf(value) === Object.prototype)
    for (const item of Object.values(value)) collect(item, into);
}

function close(tensors: Set<Tensor>, parent: Set<Tensor> | undefined, result: unknown): void {
  const kept = new Set<unknown>();
  collect(result, kept);
  for (const tensor of tensors) {
    if (!kept.has(tensor)) tensor.dispose();
    else parent?.add(tensor);
  }
}

/**
 * Runs `fn` and disposes every tensor that ops made in it, except those in its result (a tensor, or arrays, maps and
 * plain objects of tensors), which move to the enclosing scope. What autograd needs for backward stays alive.
 * With an async `fn` the scope ends when its promise settles; do not interleave it with other async scopes.
 */
export function scope<T>(fn: () => T): T {
  const parent = scopes.current;
  const own = new Set<Tensor>();
  scopes.current = own;
  return settle(fn, (value) => {
    scopes.current = parent;
    close(own, parent, value);
  });
}
