// GPT-NeoX (model_type "gpt_neox": Pythia, GPT-NeoX-20B), single-device; names are those of the checkpoint. A fused projection
// whose rows are [query | key | value] head by head, rotation of a part of each head, and attention beside the MLP.
import { gelu } from '../autograd/functions/activation.ts';
import { add } from '../autograd/functions/arithmetic.ts';
import { qkvAttention } from '../autograd/functions/attention.ts';
import { ropeTable } from '../autograd/functions/rope.ts';
import { Embedding, LayerNorm, Linear } from '../nn/layers.ts';
import { Module, ModuleList } from '../nn/module.ts';
import {
  columnParallel,
  gathersInput,
  gathersOutput,
  headParallel,
  type ParallelPlan,
  replicated,
  rowParallel,
  vocabParallel,
} from '../nn/plan.ts';
import type { FloatDType } from '../tensor/dtype.ts';
import { scope } from '../tensor/scope.ts';
import { Tensor } from '../tensor/tensor.ts';
import { CausalLM, CausalLMHead, type ForwardContext } from './causal_lm.ts';
import type { GPTNeoXConfig } from './gpt-neox-config.ts';
import type { LayerContext } from './llama.ts';
import { inverseFrequencies, rotaryDim } from './rope.ts';

/** How GPT-NeoX is divided: rows of the fused projection are ordered by head, so neighbouring heads are one range of them. */
export const gptNeoXPlan: ParallelPlan = {
  'gpt_neox.embed_in': vocabParallel,
  'gpt_neox.layers.*.input_layernorm': replicated,
  'gpt_neox.layers.*.post_attention_layernorm': replicated,
  'gpt_neox.layers.*.attention': headParallel,
  'gpt_neox.layers.*.attention.query_key_value': columnParallel,
  'gpt_neox.layers.*.attention.dense': rowParallel,
  'gpt_neox.layers.*.mlp': gathersInput,
  'gpt_neox.layers.*.mlp.dense_h_to_4h': columnParallel,
  'gpt_neox.layers.*.mlp.dense_4h_to_h': rowParallel,
  'gpt_neox.final_layer_norm': gathersOutput,
  embed_out: vocabParallel,
};

/** Forward takes its sizes from `heads`, which a parallel plan divides. */
export class GPTNeoXAttention extends Module {
  query_key_value: Linear;
  dense: Linear;
  heads: number;
  /** As many as heads. */
  kvHeads: number;
  readonly headDim: number;

  constructor(config: GPTNeoXConfig, dtype: FloatDType) {
    super();
    this.heads = config.numAttentionHeads;
    this.kvHeads = config.numKeyValueHeads;
    this.headDim = config.headDim;
    const options = { dtype, std: config.initializerRange, bias: config.attentionBias };
    this.query_key_value = new Linear(config.hiddenSize, 3 * config.hiddenSize, options);
    this.dense = new Linear(config.hiddenSize, config.hiddenSize, options);
  }

  /** `residual` is added to the result. */
  forward(x: Tensor, context: LayerContext, layer: number, residual?: Tensor): Tensor {
    const { rope, cuQ, cuK } = context;
    const { heads, headDim } = this;
    const cache = context.caches?.[layer];
    const extend = cache && ((k: Tensor, v: Tensor) => cache.append(k, v));
    const qkv = this.query_key_value.forward(x); // (rows, heads · 3 · headDim)
    return this.dense.forward(qkvAttention(qkv, rope, cuQ, cuK, { heads, headDim }, extend), residual);
  }
}

export class GPTNeoXMLP extends Module {
  dense_h_to_4h: Linear;
  dense_4h_to_h: Linear;
  readonly approximate: 'none' | 'tanh';

  constructor(config: GPTNeoXConfig, dtype: FloatDType) {
    super();
    const options = { dtype, std: config.initializerRange, bias: true };
    this.dense_h_to_4h = new Linear(config.hiddenSize, config.intermediateSize, options);
    this.dense_4h_to_h = new Linear(config.intermediateSize, config.hiddenSize, options);
    this.approximate = config.hiddenAct === 'gelu' ? 'none' : 'tanh';
  }

  /** `residual` is added to the result. */
  forward(x: Tensor, residual?: Tensor): Tensor {
    return this.dense_4h_to_h.forward(gelu(this.dense_h_to_4h.forward(x), this.approximate), residual);
  }
}

export class GPTNeoXLayer extends Module {
  input_layernorm: LayerNorm;
  post_attention_layernorm: LayerNorm;
  attention: GPTNeoXAttention;
  mlp: GPTNeoXMLP;
  readonly parallel: boolean;

  constructor(config: GPTNeoXConfig, dtype: FloatDType) {
    super();
    this.input_layernorm = new LayerNorm(config.hiddenSize, config.layerNormEps, { dtype });
    this.post_attention_layernorm = new LayerNorm(config.hiddenSize, config.layerNormEps, { dtype });
    this.attention = new GPTNeoXAttention(config, dtype);
    this.mlp = new GPTNeoXMLP(config, dtype);
    this.parallel = config.useParallelResidual;
  }

  forward(x: Tensor, context: LayerContext, layer: number): Tensor {
    return scope(() => {
      const normed = this.input_layernorm.forward(x);
      if (this.parallel) {
        const attended = this.attention.forward(normed, context, layer);
        return add(this.mlp.forward(this.post_attention_layernorm.forward(x), attended), x);
      }
      const h = this.attention.forward(normed, context, layer, x);
      return this.mlp.forward(this.post_attention_layernorm.forward(h), h);
    });
  }
}

export class GPTNeoXModel extends Module {
  embed_in: Embedding;
  layers: ModuleList<GPTNeoXLayer>;
  final_layer_norm: LayerNorm;

  constructor(config: GPTNeoXConfig, dtype: FloatDType) {
    super();
    this.embed_in = new Embedding(config.vocabSize, config.hiddenSize, { dtype, std: config.initializerRange });
    this.layers = new ModuleList(Array.from({ length: config.numHiddenLayers }, () => new GPTNeoXLayer(config, dtype)));
    this.final_layer_norm = new LayerNorm(config.hiddenSize, config.layerNormEps, { dtype });
    const { ropeParameters, headDim } = config;
    const inverse = inverseFrequencies(ropeParameters, rotaryDim(ropeParameters, headDim));
    this.registerBuffer('inv_freq', Tensor.from(inverse), false);
  }

  forward(ids: Tensor, positions: Tensor, context: ForwardContext): Tensor {
    const layerContext: LayerContext = { ...context, rope: ropeTable(positions, this.buffer('inv_freq')) };
    let hidden = this.embed_in.forward(ids);
    for (const [i, layer] of this.layers.items.entries()) hidden = layer.forward(hidden, layerContext, i);
    return this.final_layer_norm.forward(hidden);
  }
}

export class GPTNeoXForCausalLM extends CausalLM<GPTNeoXConfig> {
  gpt_neox: GPTNeoXModel;
  embed_out: CausalLMHead;
  readonly decoderLayerClass: typeof GPTNeoXLayer = GPTNeoXLayer;

  constructor(config: GPTNeoXConfig, dtype: FloatDType) {
    super(config);
    this.gpt_neox = new GPTNeoXModel(config, dtype);
    this.embed_out = new CausalLMHead(config.hiddenSize, config.vocabSize, { dtype, std: config.initializerRange });
    if (config.tieWordEmbeddings) this.tieWeights();
    this.assignParameterNames();
  }

  get numLayers(): number {
    return this.gpt_neox.layers.length;
  }

  get inputEmbedding(): Embedding {
    return this.gpt_neox.embed_in;
  }

  get outputHead(): CausalLMHead {
    return this.embed_out;
  }

  hidden(ids: Tensor, positions: Tensor, context: ForwardContext): Tensor {
    return this.gpt_neox.forward(ids, positions, context);
  }
}
