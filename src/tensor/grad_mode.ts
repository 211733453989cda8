// Whether ops record a graph.
import { processState } from '../core/context.ts';
import { settle } from '../core/finally.ts';

const gradMode: { enabled: boolean } = processState('gradMode', 'whether ops record a graph', { enabled: true });

export function isGradEnabled(): boolean {
  return gradMode.enabled;
}

/** @internal */
export function withGrad<T>(value: boolean, fn: () => T): T {
  const previous = gradMode.enabled;
  gradMode.enabled = value;
  return settle(fn, () => {
    gradMode.enabled = previous;
  });
}

/** Runs `fn` without recording a graph, as torch.no_grad. An async `fn` keeps it off until its promise settles. */
export function noGrad<T>(fn: () => T): T {
  return withGrad(false, fn);
}
