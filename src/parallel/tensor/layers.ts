// Layers of which every rank of a tensor-parallel group holds a part. Column-parallel linears need no class: they are
// linears with fewer rows.
import { add, addBias } from '../../autograd/functions/arithmetic.ts';
import { embedding } from '../../autograd/functions/embedding.ts';
import { linear } from '../../autograd/functions/linear.ts';
import { CausalLMHead } from '../../models/causal_lm.ts';
import { Embedding, Linear } from '../../nn/layers.ts';
import type { Parameter } from '../../nn/parameter.ts';
import type { Tensor } from '../../tensor/tensor.ts';
import { copyToGroup, gatherRows, reduceFromGroup, reduceScatterRows } from './collectives.ts';
import type { TensorParallel } from './context.ts';
import { gatherColumns, vocabParallelLinearCrossEntropy } from './vocab_cross_entropy.ts';

/** What every rank needs whole, with gradients that are summed: the input of column-parallel layers. */
export function gathered(x: Tensor, tp: TensorParallel): Tensor {
  return tp.sequenceParallel ? gatherRows(x, tp.group) : copyToGroup(x, tp.group);
}

/** The sum of the ranks' partial results (this rank's rows of it, with sequence parallelism). */
export function summed(x: Tensor, tp: TensorParallel): Tensor {
  return tp.sequenceParallel ? reduceScatterRows(x, tp.group) : reduceFromGroup(x, tp.group);
}

/** y = Σ over ranks of x weightᵀ, + bias once; weight (out, in / ranks), x this rank's features. */
export class RowParallelLinear extends Linear {
  private readonly tp: TensorParallel;

  /** Takes the parameters as they are: the weight is this rank's part. */
  constructor(weight: Parameter, bias: Parameter | undefined, tp: TensorParallel) {
    super(0, 0);
    this.weight = weight;
    if (bias) this.bias = bias;
    this.tp = tp;
  }

  override forward(x: Tensor, residual?: Tensor): Tensor {
    const sum = summed(this.product(x), this.tp);
    const y = this.bias ? addBias(sum, this.bias) : sum;
    return residual ? add(residual, y) : y;
  }
}

/** Rows of the vocabulary that this rank holds: weight (padded vocab / ranks, dim). */
export class VocabParallelEmbedding extends Embedding {
  private readonly tp: TensorParallel;

  constructor(weight: Parameter, tp: TensorParallel) {
    super(0, 0);
    this.weight = weight;
    this.tp = tp;
  }

  override get backwardReadsParameters(): boolean {
    return false;
  }

  override forward(ids: Tensor): Tensor {
    return summed(embedding(ids, this.weight, this.tp.rank * this.weight.size(0)), this.tp);
  }
}

/** The head over this rank's part of the vocabulary. Logits are gathered only where they are asked for, never for a loss. */
export class VocabParallelHead extends CausalLMHead {
  private readonly tp: TensorParallel;
  private readonly vocab: number;

  constructor(weight: Parameter, vocab: number, tp: TensorParallel) {
    super(0, 0);
    this.weight = weight;
    this.vocab = vocab;
    this.tp = tp;
  }

  override forward(hidden: Tensor, labels?: Tensor, denominator = 0): Tensor {
    const { group, rank } = this.tp;
    if (!labels) return gatherColumns(linear(hidden, this.weight, undefined, 'float32'), group, this.vocab);
    const first = rank * this.weight.size(0);
    const valid = Math.max(0, Math.min(this.weight.size(0), this.vocab - first));
    return vocabParallelLinearCrossEntropy(hidden, this.weight, labels, { denominator, first, valid, group });
  }
}
