// Activation checkpointing that keeps some results: the bits of the other kind, with fewer ops.
import { describe, expect, it } from 'vitest';
import {
  AutoConfig,
  AutoModelForCausalLM,
  applyActivationCheckpointing,
  manualSeed,
  profile,
} from '../../src/index.ts';
import type { Recomputation } from '../../src/parallel/recomputation.ts';
import { memoryStats } from '../../src/tensor/memory.ts';
import { scope } from '../../src/tensor/scope.ts';

const layers = 3;
const families = [
  { model_type: 'llama', num_key_value_heads: 1 },
  { model_type: 'qwen3', num_key_value_heads: 2, head_dim: 16 },
  { model_type: 'gpt_neox' },
  { model_type: 'mixtral', num_key_value_heads: 2, num_local_experts: 4, num_experts_per_tok: 2 },
];

function train(config: object, recompute: Recomputation | undefined) {
  manualSeed(5);
  const model = AutoModelForCausalLM.fromConfig(
    AutoConfig.fromObject({
      dtype: 'float32',
      hidden_size: 32,
      num_hidden_layers: layers,
      num_attention_heads: 2,
      intermediate_size: 48,
      vocab_size: 64,
      ...config,
    }),
  );
  if (recompute) applyActivationCheckpointing(model, undefined, { recompute });
  const ids = [Array.from({ length: 9 }, (_, i) => (7 * i + 3) % 64)];
  const { result, summary } = profile(() =>
    scope(() => {
      const { loss } = model.forward({ inputIds: ids, labels: ids });
      loss.backward();
      return loss.item();
    }),
  );
  const gradients = [...model.namedParameters()].map(([name, { grad }]) => [name, grad!.dataSync()] as const);
  const calls = summary.ops.find(({ op }) => op === 'attention_forward')!.calls;
  return { loss: result, gradients, calls };
}

describe.each(families)('%o', (config) => {
  it('keeps the results of attention, and gives the gradients of no checkpointing', () => {
    const plain = train(config, undefined);
    const all = train(config, 'all');
    const before = memoryStats().liveHandles;
    const selective = train(config, 'selective');
    expect([plain.calls, all.calls, selective.calls]).toEqual([layers, 2 * layers, layers]);
    expect(selective.loss).toBe(plain.loss);
    expect(selective.gradients).toEqual(plain.gradients);
    // What stays are parameters and gradients.
    expect(memoryStats().liveHandles - before).toBeLessThanOrEqual(3 * selective.gradients.length);
  });
});
