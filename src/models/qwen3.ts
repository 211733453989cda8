// Qwen3 (model_type "qwen3"): Llama's decoder with an RMSNorm over each head of queries and keys, and a window by layer.
import { RMSNorm } from '../nn/layers.ts';
import { type ParallelPlan, partialGradient } from '../nn/plan.ts';
import type { FloatDType } from '../tensor/dtype.ts';
import type { Tensor } from '../tensor/tensor.ts';
import { windowOf } from './decoder-config.ts';
import { LlamaAttention, LlamaDecoderLayer, LlamaForCausalLM, llamaPlan } from './llama.ts';
import type { Qwen3Config } from './qwen3-config.ts';

/** How Qwen3 is divided: each part of the heads gives a part of the gradient of the norms that all heads share. */
export const qwen3Plan: ParallelPlan = {
  ...llamaPlan,
  'model.layers.*.self_attn.q_norm': partialGradient,
  'model.layers.*.self_attn.k_norm': partialGradient,
};

export class Qwen3Attention extends LlamaAttention {
  q_norm: RMSNorm;
  k_norm: RMSNorm;

  constructor(config: Qwen3Config, dtype: FloatDType, window = 0) {
    super(config, dtype, window);
    this.q_norm = new RMSNorm(this.headDim, config.rmsNormEps, { dtype });
    this.k_norm = new RMSNorm(this.headDim, config.rmsNormEps, { dtype });
  }

  // The norms are as wide as a head, so they take (rows, heads · headDim) head by head.
  protected override queriesAndKeys(x: Tensor): [Tensor, Tensor] {
    const [queries, keys] = super.queriesAndKeys(x);
    return [this.q_norm.forward(queries), this.k_norm.forward(keys)];
  }
}

export class Qwen3DecoderLayer extends LlamaDecoderLayer {
  constructor(config: Qwen3Config, dtype: FloatDType, layer: number) {
    super(config, dtype, layer, new Qwen3Attention(config, dtype, windowOf(config, layer)));
  }
}

export class Qwen3ForCausalLM extends LlamaForCausalLM<Qwen3Config> {
  constructor(config: Qwen3Config, dtype: FloatDType) {
    super(config, dtype, Qwen3DecoderLayer);
  }
}
