// What training and checkpoints ask of an optimizer.
import type { ShardedOptimizer, ShardedOptimizerState, StateTensor } from '../checkpoint/sharded_state.ts';
import type { SliceRange } from '../nn/trainable_slice.ts';
import type { Tensor } from '../tensor/tensor.ts';

/** Mirrors what training uses of `torch.optim.Optimizer`. */
export interface Optimizer extends ShardedOptimizer {
  /** The learning rate of the next step. */
  lr: number;
  step(): void;
  zeroGrad(): void;
  /** @internal */
  states(create?: boolean): readonly ShardedOptimizerState[];
}

/** @internal State with one element for each element of the parameters: those of `ranges`, of which `values` begins at `from`. */
export function elementwiseState(
  kind: string,
  values: Tensor,
  ranges: Iterable<SliceRange>,
  from = 0,
): readonly StateTensor[] {
  return Array.from(ranges, ({ parameter, start, at, length }): StateTensor => {
    const { placement, fullShape } = parameter;
    const pieces = [...placement.pieces(start, length)];
    const saved = placement.isFirst ? pieces : [];
    return { kind, parameter, shape: fullShape, values: values.slice(at - from, [length]), pieces, saved };
  });
}
