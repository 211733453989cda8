// Whole parameters for a moment: gather everything, run, write back.
import { native } from '../../native.ts';
import { computeStream } from '../../tensor/streams.ts';
import { Tensor } from '../../tensor/tensor.ts';
import type { FsdpRuntime } from './runtime.ts';
import type { FsdpUnit } from './unit.ts';

export interface SummonOptions {
  /** Also give every parameter its whole `.grad`. */
  withGrads?: boolean | undefined;
  /** Write changes of the parameters back to the shards. Default true. */
  writeback?: boolean | undefined;
}

export function summon<T>(units: readonly FsdpUnit[], runtime: FsdpRuntime, fn: () => T, options: SummonOptions): T {
  if (runtime.isRunning) throw new Error('summonFullParams: not inside a forward');
  const open: { unit: FsdpUnit; full: Tensor }[] = [];
  const close = (): void => {
    for (const { unit, full } of open) {
      if (options.writeback !== false) {
        unit.beginWrite();
        using own = full.slice(unit.shardOffset, [unit.layout.shardNumel]);
        unit.shard.copyFrom(own);
        unit.markShardWritten();
      }
      unit.expose(undefined);
      full.dispose();
      for (const { parameter } of unit.layout.spans) {
        parameter.grad?.dispose();
        parameter.grad = undefined;
      }
    }
    native.streamSynchronize(computeStream);
  };
  for (const unit of units) {
    unit.reshard();
    const full = unit.gatherValues();
    unit.expose(full);
    open.push({ unit, full });
    if (options.withGrads && unit.gradShard) {
      unit.applyGradScale();
      using grads = unit.gather(unit.gradShard);
      for (const { parameter, offset } of unit.layout.spans) {
        if (!parameter.requiresGrad) continue;
        using view = grads.slice(offset, parameter.shape);
        parameter.grad = Tensor.empty(parameter.shape, view.dtype, 'gradient', view.device);
        parameter.grad.copyFrom(view);
      }
    }
  }
  let result: T;
  try {
    result = fn();
  } catch (error) {
    close();
    throw error;
  }
  if (result instanceof Promise) return result.finally(close) as T;
  close();
  return result;
}
