// The model of the measurements: a Llama of the 1B class, as bench/gpu has it too.
import { AutoConfig, type ModelConfig } from '../../../models/config.ts';
import type { Size } from '../draw.ts';

const common = {
  model_type: 'llama',
  architectures: ['LlamaForCausalLM'],
  dtype: 'bfloat16',
  rms_norm_eps: 1e-5,
  rope_theta: 500_000,
  tie_word_embeddings: true,
};

const sizes = {
  full: {
    hidden_size: 2048,
    intermediate_size: 8192,
    num_hidden_layers: 16,
    num_attention_heads: 32,
    num_key_value_heads: 8,
    vocab_size: 128_256,
    max_position_embeddings: 8192,
  },
  small: {
    hidden_size: 32,
    intermediate_size: 48,
    num_hidden_layers: 2,
    num_attention_heads: 2,
    num_key_value_heads: 1,
    vocab_size: 97,
    max_position_embeddings: 64,
  },
};

export function measuredConfig(size: Size): ModelConfig {
  return AutoConfig.fromObject({ ...common, ...sizes[size] });
}

/**
 * Floating-point operations of a token's forward and backward: six for each parameter of a GEMM (the embedding is one
 * where it is tied to the head), and those of causal attention.
 */
export function flopsPerToken(config: ModelConfig, numParams: number, length: number): number {
  const attention = 6 * config.numHiddenLayers * config.numAttentionHeads * config.headDim * length;
  return 6 * numParams + attention;
}
