// Work of backward that nothing later in it reads (weight gradients of column-parallel layers): it may wait until a
// collective is under way, and hide it.
import { onBackwardEnd } from '../tensor/engine.ts';

let waiting: (() => void)[] = [];

/** Runs `work` in the next flush, at the latest when the backward in progress ends. */
export function defer(work: () => void): void {
  if (waiting.length === 0) onBackwardEnd(flushDeferred);
  waiting.push(work);
}

/** Enqueues what waits, in order. */
export function flushDeferred(): void {
  const work = waiting;
  waiting = [];
  for (const each of work) each();
}
