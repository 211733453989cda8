// The mean loss over evaluation data, exact over all ranks: each rank sums over its part, and the sums are added.

import type { Batch } from '../data/batch.ts';
import type { DataLoader } from '../data/loader.ts';
import { state } from '../distributed/state.ts';
import type { CausalLM } from '../models/causal_lm.ts';
import type { FullyShardedDataParallel } from '../parallel/fsdp/fsdp.ts';
import { noGrad } from '../tensor/grad_mode.ts';
import { scope } from '../tensor/scope.ts';
import type { Tensor } from '../tensor/tensor.ts';

export interface Evaluation {
  /** Mean over target tokens. */
  loss: number;
  perplexity: number;
  /** Target tokens. */
  tokens: number;
  seconds: number;
}

/** One pass over what is left of the loader's epoch (make it with `shuffle: false`). Collective. */
export async function evaluate(fsdp: FullyShardedDataParallel<CausalLM>, loader: DataLoader): Promise<Evaluation> {
  const started = performance.now();
  const training = fsdp.module.training;
  fsdp.eval();
  let sum = 0;
  let tokens = 0;
  // One batch is enqueued ahead of the one whose loss is read.
  let earlier: Promise<void> | undefined;
  try {
    for (const { microBatches, numItems } of loader.epoch()) {
      tokens += numItems;
      for (const batch of microBatches) {
        const loss = lossOf(fsdp, batch, numItems);
        const read = addLoss(loss, numItems / fsdp.dataParallelSize);
        await earlier;
        earlier = read;
      }
    }
    await earlier;
  } finally {
    fsdp.train(training);
  }
  const loss = sumOverRanks(sum) / tokens;
  return { loss, perplexity: Math.exp(loss), tokens, seconds: (performance.now() - started) / 1000 };

  async function addLoss(tensor: Tensor, weight: number): Promise<void> {
    const [value] = await tensor.data();
    tensor.dispose();
    sum += Number(value) * weight;
  }
}

function lossOf(fsdp: FullyShardedDataParallel<CausalLM>, batch: Batch, numItemsInBatch: number): Tensor {
  const { inputIds, labels, cuSeqlens } = batch;
  return noGrad(() => scope(() => fsdp.forward({ inputIds, labels, cuSeqlens, numItemsInBatch }).loss));
}

/** In float64, in rank order. */
function sumOverRanks(value: number): number {
  const parts = state.lossGroup.allGatherBytes(new Uint8Array(Float64Array.of(value).buffer));
  return parts.reduce((sum, bytes) => sum + new DataView(bytes.buffer, bytes.byteOffset, 8).getFloat64(0, true), 0);
}
