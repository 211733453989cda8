// Llama 2, 3 and 3.1 (model_type "llama"), single-device; names are those of the checkpoint. Activations are (rows, hidden),
// rows = all tokens of the batch; cuSeqlens keeps sequences apart. Families of the same structure reuse these classes, by
// their config or with a decoder layer of their own.

import { packedSwiglu, swiglu } from '../autograd/functions/activation.ts';
import { attention, packedAttention } from '../autograd/functions/attention.ts';
import { type RopeTable, rope, ropeTable } from '../autograd/functions/rope.ts';
import { JointLinears } from '../nn/joint_linears.ts';
import { Embedding, Linear, RMSNorm } from '../nn/layers.ts';
import { Module, ModuleList } from '../nn/module.ts';
import {
  columnParallel,
  columnParallelBy,
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
import { type DecoderConfig, windowOf } from './decoder-config.ts';
import type { LlamaConfig } from './llama-config.ts';
import { inverseFrequencies } from './rope.ts';

/** How all is divided but the MLP; families of the same structure share it. */
export const decoderPlan: ParallelPlan = {
  'model.embed_tokens': vocabParallel,
  'model.layers.*.input_layernorm': replicated,
  'model.layers.*.self_attn': headParallel,
  'model.layers.*.self_attn.q_proj': columnParallel,
  'model.layers.*.self_attn.k_proj': columnParallelBy('numKeyValueHeads'),
  'model.layers.*.self_attn.v_proj': columnParallelBy('numKeyValueHeads'),
  'model.layers.*.self_attn.o_proj': rowParallel,
  'model.layers.*.post_attention_layernorm': replicated,
  'model.norm': gathersOutput,
  lm_head: vocabParallel,
};

/** How Llama is divided. */
export const llamaPlan: ParallelPlan = {
  ...decoderPlan,
  'model.layers.*.mlp': gathersInput,
  'model.layers.*.mlp.gate_proj': columnParallel,
  'model.layers.*.mlp.up_proj': columnParallel,
  'model.layers.*.mlp.down_proj': rowParallel,
};

/** What every layer of one forward shares. */
export interface LayerContext extends ForwardContext {
  rope: RopeTable;
}

/** A decoder layer of any family; `layer` is its index, which is that of its cache. */
export interface DecoderLayer extends Module {
  forward(x: Tensor, context: LayerContext, layer: number): Tensor;
}

export type DecoderLayerClass<C> = new (config: C, dtype: FloatDType, layer: number) => DecoderLayer;

/** Forward takes its sizes from `heads` and `kvHeads`, which a parallel plan divides. */
export class LlamaAttention extends Module {
  q_proj: Linear;
  k_proj: Linear;
  v_proj: Linear;
  o_proj: Linear;
  heads: number;
  kvHeads: number;
  readonly headDim: number;
  /** Keys that a query sees, its own included; 0: all earlier ones. */
  readonly window: number;
  private readonly jointly = new JointLinears();

  constructor(config: DecoderConfig, dtype: FloatDType, window = 0) {
    super();
    this.heads = config.numAttentionHeads;
    this.kvHeads = config.numKeyValueHeads;
    this.headDim = config.headDim;
    this.window = window;
    const options = { dtype, std: config.initializerRange, bias: config.attentionBias };
    this.q_proj = new Linear(config.hiddenSize, this.heads * this.headDim, options);
    this.k_proj = new Linear(config.hiddenSize, this.kvHeads * this.headDim, options);
    this.v_proj = new Linear(config.hiddenSize, this.kvHeads * this.headDim, options);
    this.o_proj = new Linear(this.heads * this.headDim, config.hiddenSize, {
      ...options,
      bias: config.attentionOutputBias ?? config.attentionBias,
    });
  }

  /** Queries (rows, heads · headDim) and keys (rows, kvHeads · headDim) before rotation. */
  protected queriesAndKeys(x: Tensor): [Tensor, Tensor] {
    return [this.q_proj.forward(x), this.k_proj.forward(x)];
  }

  /** `residual` is added to the result. */
  forward(x: Tensor, context: LayerContext, layer: number, residual?: Tensor): Tensor {
    return this.o_proj.forward(this.packedAttention(x, context, layer) ?? this.attention(x, context, layer), residual);
  }

  private attention(x: Tensor, context: LayerContext, layer: number): Tensor {
    const { heads, kvHeads, headDim, window } = this;
    const [queries, keys] = this.queriesAndKeys(x);
    const q = rope(queries, context.rope, heads);
    let k = rope(keys, context.rope, kvHeads);
    let v = this.v_proj.forward(x);
    const cache = context.caches?.[layer];
    if (cache) [k, v] = cache.append(k, v);
    return attention(q, k, v, context.cuQ, context.cuK, { heads, kvHeads, headDim, window });
  }

  /** The same with one projection, where the three can be one and nothing comes between them and the rotation. */
  private packedAttention(x: Tensor, context: LayerContext, layer: number): Tensor | undefined {
    if (this.queriesAndKeys !== LlamaAttention.prototype.queriesAndKeys) return undefined;
    const qkv = this.jointly.forward(x, [this.q_proj, this.k_proj, this.v_proj]);
    if (!qkv) return undefined;
    const cache = context.caches?.[layer];
    const extend = cache && ((k: Tensor, v: Tensor) => cache.append(k, v));
    const { heads, kvHeads, headDim, window } = this;
    const shape = { heads, kvHeads, headDim, window };
    const o = packedAttention(qkv, context.rope, context.cuQ, context.cuK, shape, extend);
    qkv.dispose(); // neither attention nor its backward reads it again
    return o;
  }
}

export class LlamaMLP extends Module {
  gate_proj: Linear;
  up_proj: Linear;
  down_proj: Linear;
  private readonly jointly = new JointLinears();

  constructor(config: DecoderConfig, dtype: FloatDType) {
    super();
    const options = { dtype, std: config.initializerRange, bias: config.mlpBias };
    this.gate_proj = new Linear(config.hiddenSize, config.intermediateSize, options);
    this.up_proj = new Linear(config.hiddenSize, config.intermediateSize, options);
    this.down_proj = new Linear(config.intermediateSize, config.hiddenSize, options);
  }

  /** `residual` is added to the result. */
  forward(x: Tensor, residual?: Tensor): Tensor {
    const gateUp = this.jointly.forward(x, [this.gate_proj, this.up_proj]);
    const inner = gateUp ? packedSwiglu(gateUp) : swiglu(this.gate_proj.forward(x), this.up_proj.forward(x));
    return this.down_proj.forward(inner, residual);
  }
}

export class LlamaDecoderLayer extends Module {
  self_attn: LlamaAttention;
  mlp: LlamaMLP;
  input_layernorm: RMSNorm;
  post_attention_layernorm: RMSNorm;

  constructor(
    config: DecoderConfig,
    dtype: FloatDType,
    layer: number,
    selfAttention: LlamaAttention = new LlamaAttention(config, dtype, windowOf(config, layer)),
  ) {
    super();
    this.input_layernorm = new RMSNorm(config.hiddenSize, config.rmsNormEps, { dtype });
    this.self_attn = selfAttention;
    this.post_attention_layernorm = new RMSNorm(config.hiddenSize, config.rmsNormEps, { dtype });
    this.mlp = new LlamaMLP(config, dtype);
  }

  forward(x: Tensor, context: LayerContext, layer: number): Tensor {
    return scope(() => {
      const h = this.self_attn.forward(this.input_layernorm.forward(x), context, layer, x);
      return this.mlp.forward(this.post_attention_layernorm.forward(h), h);
    });
  }
}

export class LlamaModel<C extends DecoderConfig> extends Module {
  embed_tokens: Embedding;
  layers: ModuleList<DecoderLayer>;
  norm: RMSNorm;

  constructor(config: C, dtype: FloatDType, layerClass: DecoderLayerClass<C>) {
    super();
    this.embed_tokens = new Embedding(config.vocabSize, config.hiddenSize, {
      dtype,
      std: config.initializerRange,
      paddingIdx: config.padTokenId ?? undefined,
    });
    this.layers = new ModuleList(
      Array.from({ length: config.numHiddenLayers }, (_, i) => new layerClass(config, dtype, i)),
    );
    this.norm = new RMSNorm(config.hiddenSize, config.rmsNormEps, { dtype });
    const inverse = inverseFrequencies(config.ropeParameters, config.headDim);
    this.registerBuffer('inv_freq', Tensor.from(inverse), false);
  }

  forward(ids: Tensor, positions: Tensor, context: ForwardContext): Tensor {
    const layerContext: LayerContext = { ...context, rope: ropeTable(positions, this.buffer('inv_freq')) };
    let hidden = this.embed_tokens.forward(ids);
    for (const [i, layer] of this.layers.items.entries()) hidden = layer.forward(hidden, layerContext, i);
    return this.norm.forward(hidden);
  }
}

export class LlamaForCausalLM<C extends DecoderConfig = LlamaConfig> extends CausalLM<C> {
  model: LlamaModel<C>;
  lm_head: CausalLMHead;
  readonly decoderLayerClass: DecoderLayerClass<C>;

  constructor(config: C, dtype: FloatDType, layerClass: DecoderLayerClass<C> = LlamaDecoderLayer) {
    super(config);
    this.decoderLayerClass = layerClass;
    this.model = new LlamaModel(config, dtype, layerClass);
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

  hidden(ids: Tensor, positions: Tensor, context: ForwardContext): Tensor {
    return this.model.forward(ids, positions, context);
  }
}
