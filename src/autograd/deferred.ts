// Work of backward that nothing later in it reads (weight gradients of column-parallel layers): it may wait until a
// collective is under way, and hide it.
import { processState } from '../core/context.ts';
import { onBackwardEnd } from '../tensor/engine.ts';

const waiting: (() => void)[] = processState<(() => void)[]>('deferred', 'work of backward that waits', []);

/** Runs `work` in the next flush, at the latest when the backward in progress ends. */
export function defer(work: () => void): void {
  if (waiting.length === 0) onBackwardEnd(flushDeferred);
  waiting.push(work);
}

/** Enqueues what waits, in order. */
export function flushDeferred(): void {
  for (const each of waiting.splice(0)) each();
}
