// Selective activation checkpointing: what a module keeps of its forward beside its inputs, so that running it again in backward
// leaves out the ops whose results are kept. Which those are the ops say themselves, by keptResults.
import { processState } from '../core/context.ts';
import { track } from '../tensor/scope.ts';
import type { Tensor } from '../tensor/tensor.ts';

const modules: { current: KeptResults | undefined } = processState(
  'recompute',
  'the module that keeps results of its ops, or runs again with them',
  { current: undefined },
);

/** What one forward of a module keeps, in the order of its ops. */
export class KeptResults {
  private results: (readonly Tensor[])[] = [];
  /** What ops returned in forward, to be told from what the module returns. */
  private made: (readonly Tensor[])[] | undefined = [];
  private next = 0;

  /** The first run: `fn` returns the module's result, which is not kept, since no gradient is made of it. */
  keep(fn: () => Tensor): Tensor {
    const out = this.during(fn);
    const last = this.made!.findIndex((tensors) => tensors[0] === out);
    if (last >= 0) {
      for (const tensor of this.results[last]!) tensor.dispose();
      this.results[last] = [];
    }
    this.made = undefined;
    return out;
  }

  /** Runs `fn` again. */
  replay(fn: () => Tensor): Tensor {
    this.next = 0;
    return this.during(fn);
  }

  release(): void {
    for (const tensors of this.results) for (const tensor of tensors) tensor.dispose();
    this.results = [];
  }

  /** @internal */
  take(shapes: () => readonly Tensor[], fill: (tensors: readonly Tensor[]) => void): readonly Tensor[] {
    if (this.made) {
      const tensors = shapes();
      fill(tensors);
      this.results.push(tensors.map((tensor) => tensor.detach()));
      this.made.push(tensors);
      return tensors;
    }
    const kept = this.results[this.next++];
    if (!kept) throw new Error('a checkpointed module ran other ops in backward than in forward');
    if (kept.length === 0) return shapes(); // the module's result: nobody reads it
    return kept.map((tensor) => tensor.detach());
  }

  private during(fn: () => Tensor): Tensor {
    const before = modules.current;
    modules.current = this;
    try {
      return fn();
    } finally {
      modules.current = before;
    }
  }
}

/**
 * The results of an op that selective checkpointing keeps: `allocate` makes tensors and `fill` computes them, unless the module runs
 * again. Owned by the innermost scope.
 */
export function keptResults<T extends readonly Tensor[]>(allocate: () => T, fill: (tensors: T) => void): T {
  const kept = modules.current;
  let tensors: T;
  if (kept) tensors = kept.take(allocate, fill as (tensors: readonly Tensor[]) => void) as unknown as T;
  else {
    tensors = allocate();
    fill(tensors);
  }
  for (const tensor of tensors) track(tensor);
  return tensors;
}
