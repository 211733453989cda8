// The layers of decoder models. Weights start as Transformers initialises them (initializer_range), lazily.
import { add } from '../autograd/functions/arithmetic.ts';
import { embedding } from '../autograd/functions/embedding.ts';
import { layerNorm } from '../autograd/functions/layer_norm.ts';
import { linear } from '../autograd/functions/linear.ts';
import { rmsNorm } from '../autograd/functions/rms_norm.ts';
import type { FloatDType } from '../tensor/dtype.ts';
import type { Tensor } from '../tensor/tensor.ts';
import { Module } from './module.ts';
import { Parameter } from './parameter.ts';

export interface LayerOptions {
  dtype?: FloatDType | undefined;
  /** Standard deviation of the initial weights. Default 0.02. */
  std?: number | undefined;
}

/** What takes part in the product of a Linear: small trained matrices beside its weight (nn/lora.ts). */
export interface LinearAdapter {
  /** Whether the product is other than the layer's own. */
  readonly isActive: boolean;
  /** As of the Linear, which has them as its own. */
  namedChildren(): Iterable<[string, Module]>;
  /** `base`: x weightᵀ + bias, which nothing else has. */
  forward(x: Tensor, base: (bias: Parameter | undefined) => Tensor, bias: Parameter | undefined): Tensor;
}

/** y = x weightᵀ + bias; weight (out, in). */
export class Linear extends Module {
  weight: Parameter;
  bias?: Parameter;
  /** @internal */
  adapter?: LinearAdapter;
  /** @internal Backward of the input first: a collective on it then hides the GEMM for the weight. */
  deferWeightGrad = false;

  constructor(inFeatures: number, outFeatures: number, options: LayerOptions & { bias?: boolean | undefined } = {}) {
    super();
    const { dtype = 'float32', std = 0.02 } = options;
    this.weight = new Parameter([outFeatures, inFeatures], dtype, { kind: 'normal', std });
    if (options.bias) this.bias = new Parameter([outFeatures], dtype, { kind: 'constant', value: 0 });
  }

  override *namedChildren(): Generator<[string, Module]> {
    yield* super.namedChildren();
    if (this.adapter) yield* this.adapter.namedChildren();
  }

  /** @internal Whether forward is x weightᵀ + bias and nothing else, so that others may run it together with theirs. */
  get isPlain(): boolean {
    return this.forward === Linear.prototype.forward && !this.adapter?.isActive && !this.weight.quantized;
  }

  /** `residual` is added. */
  forward(x: Tensor, residual?: Tensor): Tensor {
    return this.product(x, this.bias, residual);
  }

  /** x weightᵀ + bias + residual, with what an adapter adds. */
  protected product(x: Tensor, bias?: Parameter, residual?: Tensor): Tensor {
    const { adapter, weight, deferWeightGrad } = this;
    if (!adapter?.isActive) return linear(x, weight, bias, x.dtype, deferWeightGrad, residual);
    const y = adapter.forward(x, (added) => linear(x, weight, added, x.dtype, deferWeightGrad), bias);
    return residual ? add(residual, y) : y;
  }
}

/** Rows of weight (vocab, dim). `paddingIdx`: a row that starts at zero. */
export class Embedding extends Module {
  weight: Parameter;

  constructor(vocab: number, dim: number, options: LayerOptions & { paddingIdx?: number | undefined } = {}) {
    super();
    const { dtype = 'float32', std = 0.02 } = options;
    this.weight = new Parameter([vocab, dim], dtype, { kind: 'normal', std, paddingRow: options.paddingIdx });
  }

  /** The gradient of a lookup depends on the ids alone; a subclass with a forward of its own may do more. */
  override get backwardReadsParameters(): boolean {
    return Object.getPrototypeOf(this).forward !== Embedding.prototype.forward;
  }

  forward(ids: Tensor): Tensor {
    return embedding(ids, this.weight);
  }
}

/** RMSNorm over the last dimension, Llama's order: normalise in float32, cast, multiply. */
export class RMSNorm extends Module {
  weight: Parameter;
  readonly eps: number;

  constructor(dim: number, eps: number, options: { dtype?: FloatDType | undefined } = {}) {
    super();
    this.weight = new Parameter([dim], options.dtype ?? 'float32', { kind: 'constant', value: 1 });
    this.eps = eps;
  }

  forward(x: Tensor): Tensor {
    return rmsNorm(x, this.weight, this.eps);
  }
}

/** LayerNorm over the last dimension, with weight and bias. */
export class LayerNorm extends Module {
  weight: Parameter;
  bias: Parameter;
  readonly eps: number;

  constructor(dim: number, eps: number, options: { dtype?: FloatDType | undefined } = {}) {
    super();
    const { dtype = 'float32' } = options;
    this.weight = new Parameter([dim], dtype, { kind: 'constant', value: 1 });
    this.bias = new Parameter([dim], dtype, { kind: 'constant', value: 0 });
    this.eps = eps;
  }

  forward(x: Tensor): Tensor {
    return layerNorm(x, this.weight, this.bias, this.eps);
  }
}
