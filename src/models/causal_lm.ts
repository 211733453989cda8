// What every causal language model shares: the forward that users call, tied heads, generation and saving.
import { crossEntropy, linearCrossEntropy } from '../autograd/functions/cross_entropy.ts';
import { linear } from '../autograd/functions/linear.ts';
import { addBalancingLoss, type RouterBalance } from '../autograd/functions/moe.ts';
import { withSequences } from '../autograd/randomness.ts';
import { savePretrained } from '../checkpoint/save_pretrained.ts';
import type { CheckpointSource } from '../checkpoint/source.ts';
import type { Embedding } from '../nn/layers.ts';
import { Linear } from '../nn/layers.ts';
import { ownParametersOf } from '../nn/lora.ts';
import { Module } from '../nn/module.ts';
import { scope, track } from '../tensor/scope.ts';
import { computeDevice } from '../tensor/streams.ts';
import { Tensor } from '../tensor/tensor.ts';
import { type ForwardInput, type HostBatch, int64Tensor, layOut } from './batch.ts';
import type { LayerCache } from './cache.ts';
import { configText, type ModelConfig } from './config.ts';
import { type GenerateOptions, generate } from './generate.ts';

export interface LossOutput {
  /** 0-d float32 */
  loss: Tensor;
  /** (batch, length, vocab) float32, with returnLogits */
  logits?: Tensor;
}

export interface LogitsOutput {
  /** (batch, length, vocab) float32 */
  logits: Tensor;
}

/** The head: logits, or straight to the loss so that logits never exist as a whole. */
export class CausalLMHead extends Linear {
  override forward(hidden: Tensor, labels?: Tensor, denominator?: number): Tensor {
    return labels
      ? linearCrossEntropy(hidden, this.weight, labels, denominator)
      : linear(hidden, this.weight, undefined, 'float32');
  }
}

/** What the layers of one forward share, besides their input. */
export interface ForwardContext {
  /** int32 (sequences + 1) row offsets of queries, and of keys (the same tensor but for cached generation) */
  cuQ: Tensor;
  cuK: Tensor;
  /** Of each layer, in generation. */
  caches?: readonly LayerCache[] | undefined;
  /** Filled by routers when the loss has a term that balances experts. */
  balance?: RouterBalance | undefined;
}

export abstract class CausalLM<C extends ModelConfig = ModelConfig> extends Module {
  readonly config: C;
  /** @internal Where the checkpoint came from, for saving beside it. */
  source: CheckpointSource | undefined;
  /** @internal The rows of a forward are padded to a multiple of this: layers may be run on equal parts of them. */
  rowMultiple = 1;

  constructor(config: C) {
    super();
    this.config = config;
  }

  /** The class of the decoder layers. */
  abstract readonly decoderLayerClass: new (
    ...args: never[]
  ) => Module;
  abstract get inputEmbedding(): Embedding;
  abstract get outputHead(): CausalLMHead;
  /** ids and positions (rows) int64 → final hidden states (rows, hidden). */
  abstract hidden(ids: Tensor, positions: Tensor, context: ForwardContext): Tensor;

  override get repeatedModules(): readonly Module[] {
    return [...this.modules()].filter((module) => module instanceof this.decoderLayerClass);
  }

  /** The decoder layers; embedding and head too, where they are not tied. */
  override get unitModules(): readonly Module[] {
    return this.isTied ? this.repeatedModules : [...this.repeatedModules, this.inputEmbedding, this.outputHead];
  }

  /** Room for the balance of `rows` rows, in families of experts whose loss has a term for it. */
  protected routerBalance(_rows: number): RouterBalance | undefined {
    return undefined;
  }

  /** Makes head and embedding one parameter. */
  tieWeights(): void {
    this.outputHead.weight = this.inputEmbedding.weight;
  }

  get isTied(): boolean {
    return this.outputHead.weight === this.inputEmbedding.weight;
  }

  /**
   * With labels: the loss (shifted; mean over labels ≠ −100, or Σ / numItemsInBatch; plus the term that balances
   * experts, where the config asks for it). Without: logits.
   * Enqueues and returns; a bad id or shape throws before anything is enqueued.
   */
  forward(input: ForwardInput & { labels: NonNullable<ForwardInput['labels']> }): LossOutput;
  forward(input: ForwardInput & { labels?: undefined }): LogitsOutput;
  forward(input: ForwardInput): LossOutput | LogitsOutput;
  forward(input: ForwardInput): LossOutput | LogitsOutput {
    const host = layOut(input, this.config.vocabSize, this.rowMultiple);
    return withSequences(host.cuSeqlens, () => this.forwardRows(host, input));
  }

  private forwardRows(host: HostBatch, input: ForwardInput): LossOutput | LogitsOutput {
    return scope(() => {
      const cu = Tensor.from(host.cuSeqlens, [host.cuSeqlens.length], { device: computeDevice() });
      const balance = host.labels && this.routerBalance(host.ids.length - host.padding);
      const hidden = this.hidden(int64Tensor(host.ids), int64Tensor(host.positions), { cuQ: cu, cuK: cu, balance });
      const shape = [host.batch, host.length, this.config.vocabSize];
      if (!host.labels) return { logits: reshaped(this.outputHead.forward(hidden), shape, host.padding) };
      const labels = int64Tensor(host.labels);
      const denominator = input.numItemsInBatch ?? 0;
      const complete = (loss: Tensor): Tensor => (balance ? addBalancingLoss(loss, balance) : loss);
      if (!input.returnLogits) return { loss: complete(this.outputHead.forward(hidden, labels, denominator)) };
      const logits = this.outputHead.forward(hidden);
      const loss = complete(crossEntropy(logits, labels, denominator));
      return { loss, logits: reshaped(logits, shape, host.padding) };
    });
  }

  /**
   * Continues `ids` (one prompt, or several one after the other): prompt and new tokens, as Transformers returns them.
   * Greedy unless temperature > 0.
   */
  generate(ids: readonly number[], options?: GenerateOptions): Promise<number[]>;
  generate(ids: readonly (readonly number[])[], options?: GenerateOptions): Promise<number[][]>;
  async generate(
    ids: readonly number[] | readonly (readonly number[])[],
    options: GenerateOptions = {},
  ): Promise<number[] | number[][]> {
    if (!Array.isArray(ids[0])) return generate(this, ids as readonly number[], options);
    const out: number[][] = [];
    for (const prompt of ids as readonly (readonly number[])[]) out.push(await generate(this, prompt, options));
    return out;
  }

  /** @internal One step of generation: logits (1, vocab) of the last of `ids`, which continue what the caches hold. */
  step(ids: Int32Array, caches: readonly LayerCache[]): Tensor {
    return scope(() => {
      const start = caches[0]!.length;
      const positions = int64Tensor(Int32Array.from(ids, (_, i) => start + i));
      const device = computeDevice();
      const cuQ = Tensor.from(Int32Array.of(0, ids.length), [2], { device });
      const cuK = Tensor.from(Int32Array.of(0, start + ids.length), [2], { device });
      const hidden = this.hidden(int64Tensor(ids), positions, { cuQ, cuK, caches });
      using last = hidden.narrow(ids.length - 1, 1);
      return this.outputHead.forward(last);
    });
  }

  abstract get numLayers(): number;

  /** @internal config.json, as it is saved. */
  get configText(): string {
    return configText(this.config);
  }

  /** Writes config, safetensors files (sharded from 5 GB) and what stood beside the loaded checkpoint (tokenizer, chat template). */
  async savePretrained(dir: string, options: { maxShardBytes?: number | undefined } = {}): Promise<void> {
    const tensors = ownParametersOf(this).map(([name, parameter]) => ({
      name,
      shape: parameter.shape,
      dtype: parameter.checkpointDtype ?? parameter.dtype,
      read: () => parameter.detach(),
    }));
    await savePretrained(dir, this, tensors, options);
  }
}

// The graph stays with the reshaped object: same storage, same node. Padding rows are cut off, and the graph with them.
function reshaped(tensor: Tensor, shape: readonly number[], padding: number): Tensor {
  if (padding > 0) {
    using rows = tensor.narrow(0, tensor.size(0) - padding);
    const view = rows.view(shape);
    track(view);
    return view;
  }
  const view = tensor.view(shape);
  view.requiresGrad = tensor.requiresGrad;
  view.gradFn = tensor.gradFn;
  return view;
}
