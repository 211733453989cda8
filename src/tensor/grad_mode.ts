// Whether ops record a graph.
import { settle } from '../core/finally.ts';

let enabled = true;

export function isGradEnabled(): boolean {
  return enabled;
}

/** @internal */
export function withGrad<T>(value: boolean, fn: () => T): T {
  const previous = enabled;
  enabled = value;
  return settle(fn, () => {
    enabled = previous;
  });
}

/** Runs `fn` without recording a graph, as torch.no_grad. An async `fn` keeps it off until its promise settles. */
export function noGrad<T>(fn: () => T): T {
  return withGrad(false, fn);
}
