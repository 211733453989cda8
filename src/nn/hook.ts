// Putting something around a method of one module.
import type { Module } from './module.ts';

type Method = (...args: unknown[]) => unknown;

/** Replaces `module[method]` by `around(inner, args)`, for this module alone. */
export function hook(
  module: Module,
  method: 'forward' | 'hidden' | 'step',
  around: (inner: Method, args: unknown[]) => unknown,
): void {
  const target = module as unknown as Record<string, Method>;
  const inner = target[method]!.bind(module);
  Object.defineProperty(module, method, {
    value: (...args: unknown[]) => around(inner, args),
    configurable: true,
    enumerable: false,
  });
}
