// Llama 2, 3 and 3.1 (model_type "llama"), single-device; names are those of the checkpoint. Activations are (rows, hidden),
// rows = all tokens of the batch; cuSeqlens keeps sequences apart.

import { swiglu } from '../autograd/functions/activation.ts';
import { add } from '../autograd/functions/arithmetic.ts';
import { attention } from '../autograd/functions/attention.ts';
import { type RopeTable, rope, ropeTable } from '../autograd/functions/rope.ts';
import { Embedding, Linear, RMSNorm } from '../nn/layers.ts';
import { Module, ModuleList } from '../nn/module.ts';
import type { TensorParallelPlan } from '../parallel/transform/plan.ts';
import type { FloatDType } from '../tensor/dtype.ts';
import { scope } from '../tensor/scope.ts';
import { Tensor } from '../tensor/tensor.ts';
import type { LayerCache } from './cache.ts';
import { CausalLM, CausalLMHead } from './causal_lm.ts';
import type { LlamaConfig } from './llama-config.ts';
import { inverseFrequencies } from './rope.ts';

/** How Llama is split; families of the same structure share it. */
export const llamaPlan: TensorParallelPlan = {
  'model.embed_tokens': 'vocabulary',
  'model.layers.*.input_layernorm': 'perRow',
  'model.layers.*.self_attn': 'attention',
  'model.layers.*.self_attn.q_proj': 'column',
  'model.layers.*.self_attn.k_proj': 'keyValue',
  'model.layers.*.self_attn.v_proj': 'keyValue',
  'model.layers.*.self_attn.o_proj': 'row',
  'model.layers.*.post_attention_layernorm': 'perRow',
  'model.layers.*.mlp': 'gathered',
  'model.layers.*.mlp.gate_proj': 'column',
  'model.layers.*.mlp.up_proj': 'column',
  'model.layers.*.mlp.down_proj': 'row',
  'model.norm': 'finalNorm',
  lm_head: 'vocabulary',
};

/** What every layer of one forward shares. */
export interface LayerContext {
  rope: RopeTable;
  /** int32 (sequences + 1) row offsets of queries, and of keys (the same tensor but for cached generation) */
  cuQ: Tensor;
  cuK: Tensor;
  caches?: readonly LayerCache[] | undefined;
}

export class LlamaAttention extends Module {
  q_proj: Linear;
  k_proj: Linear;
  v_proj: Linear;
  o_proj: Linear;
  heads: number;
  kvHeads: number;
  readonly headDim: number;

  constructor(config: LlamaConfig, dtype: FloatDType) {
    super();
    this.heads = config.numAttentionHeads;
    this.kvHeads = config.numKeyValueHeads;
    this.headDim = config.headDim;
    const options = { dtype, std: config.initializerRange, bias: config.attentionBias };
    this.q_proj = new Linear(config.hiddenSize, this.heads * this.headDim, options);
    this.k_proj = new Linear(config.hiddenSize, this.kvHeads * this.headDim, options);
    this.v_proj = new Linear(config.hiddenSize, this.kvHeads * this.headDim, options);
    this.o_proj = new Linear(this.heads * this.headDim, config.hiddenSize, options);
  }

  forward(x: Tensor, context: LayerContext, layer: number): Tensor {
    const q = rope(this.q_proj.forward(x), context.rope, this.heads);
    let k = rope(this.k_proj.forward(x), context.rope, this.kvHeads);
    let v = this.v_proj.forward(x);
    const cache = context.caches?.[layer];
    if (cache) [k, v] = cache.append(k, v);
    const { heads, kvHeads, headDim } = this;
    return this.o_proj.forward(attention(q, k, v, context.cuQ, context.cuK, { heads, kvHeads, headDim }));
  }
}

export class LlamaMLP extends Module {
  gate_proj: Linear;
  up_proj: Linear;
  down_proj: Linear;

  constructor(config: LlamaConfig, dtype: FloatDType) {
    super();
    const options = { dtype, std: config.initializerRange, bias: config.mlpBias };
    this.gate_proj = new Linear(config.hiddenSize, config.intermediateSize, options);
    this.up_proj = new Linear(config.hiddenSize, config.intermediateSize, options);
    this.down_proj = new Linear(config.intermediateSize, config.hiddenSize, options);
  }

  forward(x: Tensor): Tensor {
    return this.down_proj.forward(swiglu(this.gate_proj.forward(x), this.up_proj.forward(x)));
  }
}

export class LlamaDecoderLayer extends Module {
  self_attn: LlamaAttention;
  mlp: LlamaMLP;
  input_layernorm: RMSNorm;
  post_attention_layernorm: RMSNorm;

  constructor(config: LlamaConfig, dtype: FloatDType) {
    super();
    this.input_layernorm = new RMSNorm(config.hiddenSize, config.rmsNormEps, { dtype });
    this.self_attn = new LlamaAttention(config, dtype);
    this.post_attention_layernorm = new RMSNorm(config.hiddenSize, config.rmsNormEps, { dtype });
    this.mlp = new LlamaMLP(config, dtype);
  }

  forward(x: Tensor, context: LayerContext, layer: number): Tensor {
    return scope(() => {
      const h = add(x, this.self_attn.forward(this.input_layernorm.forward(x), context, layer));
      return add(h, this.mlp.forward(this.post_attention_layernorm.forward(h)));
    });
  }
}

export class LlamaModel extends Module {
  embed_tokens: Embedding;
  layers: ModuleList<LlamaDecoderLayer>;
  norm: RMSNorm;

  constructor(config: LlamaConfig, dtype: FloatDType) {
    super();
    this.embed_tokens = new Embedding(config.vocabSize, config.hiddenSize, {
      dtype,
      std: config.initializerRange,
      paddingIdx: config.padTokenId ?? undefined,
    });
    this.layers = new ModuleList(
      Array.from({ length: config.numHiddenLayers }, () => new LlamaDecoderLayer(config, dtype)),
    );
    this.norm = new RMSNorm(config.hiddenSize, config.rmsNormEps, { dtype });
    const inverse = inverseFrequencies(config.ropeParameters, config.headDim);
    this.registerBuffer('inv_freq', Tensor.from(inverse), false);
  }

  forward(ids: Tensor, positions: Tensor, sequences: Pick<LayerContext, 'cuQ' | 'cuK' | 'caches'>): Tensor {
    const context: LayerContext = { ...sequences, rope: ropeTable(positions, this.buffer('inv_freq')) };
    let hidden = this.embed_tokens.forward(ids);
    for (const [i, layer] of this.layers.items.entries()) hidden = layer.forward(hidden, context, i);
    return this.norm.forward(hidden);
  }
}

export class LlamaForCausalLM extends CausalLM<LlamaConfig> {
  model: LlamaModel;
  lm_head: CausalLMHead;
  readonly decoderLayerClass: typeof LlamaDecoderLayer = LlamaDecoderLayer;

  constructor(config: LlamaConfig, dtype: FloatDType) {
    super(config);
    this.model = new LlamaModel(config, dtype);
    this.lm_head = new CausalLMHead(config.hiddenSize, config.vocabSize, { dtype, std: config.initializerRange });
    if (config.tieWordEmbeddings) this.tieWeights();
    this.assignParameterNames();
  }

  get numLayers(): number {
    return this.model.layers.length;
  }

  get inputEmbedding(): Embedding {
    return this.model.embed_tokens;
  }

  get outputHead(): CausalLMHead {
    return this.lm_head;
  }

  hidden(ids: Tensor, positions: Tensor, sequences: Pick<LayerContext, 'cuQ' | 'cuK' | 'caches'>): Tensor {
    return this.model.forward(ids, positions, sequences);
  }
}
