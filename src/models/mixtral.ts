// Mixtral (model_type "mixtral"): Llama's decoder, with a router and experts in place of the MLP. Names are those of the usual
// checkpoint (block_sparse_moe.experts.N.w1); the fused one, which holds all experts of a layer in one tensor, is read too.
import { add } from '../autograd/functions/arithmetic.ts';
import { type RouterBalance, route, routerBalance, runExperts } from '../autograd/functions/moe.ts';
import type { FilePart } from '../checkpoint/hf-files.ts';
import { Linear, RMSNorm } from '../nn/layers.ts';
import { Module, ModuleList } from '../nn/module.ts';
import { columnParallel, type ParallelPlan, partialGradient, rowParallel, sumsOutput } from '../nn/plan.ts';
import type { FloatDType } from '../tensor/dtype.ts';
import { scope } from '../tensor/scope.ts';
import { computeDevice } from '../tensor/streams.ts';
import type { Tensor } from '../tensor/tensor.ts';
import { windowOf } from './decoder-config.ts';
import { decoderPlan, type LayerContext, LlamaAttention, LlamaForCausalLM } from './llama.ts';
import type { MixtralConfig } from './mixtral-config.ts';

/** How Mixtral is divided: each expert by its inner dimension, the router not at all. */
export const mixtralPlan: ParallelPlan = {
  ...decoderPlan,
  'model.layers.*.block_sparse_moe': sumsOutput,
  'model.layers.*.block_sparse_moe.gate': partialGradient,
  'model.layers.*.block_sparse_moe.experts.*.w1': columnParallel,
  'model.layers.*.block_sparse_moe.experts.*.w2': rowParallel,
  'model.layers.*.block_sparse_moe.experts.*.w3': columnParallel,
};

/** The weights of one expert; the block runs all experts of a layer together. */
export class MixtralExpert extends Module {
  w1: Linear;
  w2: Linear;
  w3: Linear;

  constructor(config: MixtralConfig, dtype: FloatDType) {
    super();
    const options = { dtype, std: config.initializerRange };
    this.w1 = new Linear(config.hiddenSize, config.intermediateSize, options);
    this.w2 = new Linear(config.intermediateSize, config.hiddenSize, options);
    this.w3 = new Linear(config.hiddenSize, config.intermediateSize, options);
  }

  forward(): never {
    throw new Error('an expert has no forward; call the block that holds it');
  }
}

/** Takes its sizes from the experts' weights: with slices of them (rows of w1 and w3, columns of w2) it gives partial sums. */
export class MixtralSparseMoeBlock extends Module {
  gate: Linear;
  experts: ModuleList<MixtralExpert>;
  readonly topK: number;

  constructor(config: MixtralConfig, dtype: FloatDType) {
    super();
    this.topK = config.numExpertsPerTok;
    this.gate = new Linear(config.hiddenSize, config.numLocalExperts, { dtype, std: config.initializerRange });
    this.experts = new ModuleList(
      Array.from({ length: config.numLocalExperts }, () => new MixtralExpert(config, dtype)),
    );
  }

  override get isAtomic(): boolean {
    return true;
  }

  /** x (rows, hidden); `layer` is the block's place in the balance. */
  forward(x: Tensor, balance: RouterBalance | undefined, layer: number): Tensor {
    const routing = route(this.gate.forward(x), this.topK, balance && { balance, layer });
    const weights = this.experts.items.map(({ w1, w2, w3 }) => ({ w1: w1.weight, w2: w2.weight, w3: w3.weight }));
    return runExperts(x, routing, weights);
  }
}

export class MixtralDecoderLayer extends Module {
  self_attn: LlamaAttention;
  block_sparse_moe: MixtralSparseMoeBlock;
  input_layernorm: RMSNorm;
  post_attention_layernorm: RMSNorm;

  constructor(config: MixtralConfig, dtype: FloatDType, layer: number) {
    super();
    this.input_layernorm = new RMSNorm(config.hiddenSize, config.rmsNormEps, { dtype });
    this.self_attn = new LlamaAttention(config, dtype, windowOf(config, layer));
    this.post_attention_layernorm = new RMSNorm(config.hiddenSize, config.rmsNormEps, { dtype });
    this.block_sparse_moe = new MixtralSparseMoeBlock(config, dtype);
  }

  forward(x: Tensor, context: LayerContext, layer: number): Tensor {
    return scope(() => {
      const h = this.self_attn.forward(this.input_layernorm.forward(x), context, layer, x);
      return add(h, this.block_sparse_moe.forward(this.post_attention_layernorm.forward(h), context.balance, layer));
    });
  }
}

export class MixtralForCausalLM extends LlamaForCausalLM<MixtralConfig> {
  constructor(config: MixtralConfig, dtype: FloatDType) {
    super(config, dtype, MixtralDecoderLayer);
  }

  protected override routerBalance(rows: number): RouterBalance | undefined {
    const { outputRouterLogits, numHiddenLayers, numLocalExperts, routerAuxLossCoef } = this.config;
    if (!outputRouterLogits) return undefined;
    return routerBalance(numHiddenLayers, numLocalExperts, rows, routerAuxLossCoef, computeDevice());
  }
}

/** Where a parameter stands in a fused checkpoint: w1 and w3 of every expert in gate_up_proj, w2 in down_proj. */
export function fusedPart(name: string, config: MixtralConfig): FilePart | undefined {
  const { numLocalExperts: experts, intermediateSize: inner, hiddenSize: hidden } = config;
  const [, layer, path] = /^(model\.layers\.\d+)\.block_sparse_moe\.(.+)\.weight$/.exec(name) ?? [];
  if (!path) return undefined;
  if (path === 'gate') return { name: `${layer}.mlp.gate.weight`, shape: [experts, hidden], start: 0 };
  const [, expert, matrix] = path.split('.');
  const at = Number(expert);
  if (matrix === 'w2')
    return { name: `${layer}.mlp.experts.down_proj`, shape: [experts, hidden, inner], start: at * hidden * inner };
  return {
    name: `${layer}.mlp.experts.gate_up_proj`,
    shape: [experts, 2 * inner, hidden],
    start: (2 * at + (matrix === 'w3' ? 1 : 0)) * inner * hidden,
  };
}
