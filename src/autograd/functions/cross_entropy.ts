// The loss of a causal language model. Gradients are made in the forward pass, where the logits are; backward only
// multiplies them by its incoming gradient.
import { type Handle, NONE, native } from '../../native.ts';
import { fuses } from '../../tensor/fusions.ts';
import { isGradEnabled } from '../../tensor/grad_mode.ts';
import { Tensor } from '../../tensor/tensor.ts';
import { type GradClaim, hasGradSink, output, record, type Saved, writeGrad } from '../record.ts';

/**
 * @internal The gradient of a head's weight, which is made with the loss: in the place where backward wants it, if that can be had
 * (tensor/fusions.ts), else in float32 of its own.
 */
export class HeadGradient {
  readonly weight: Tensor;
  private readonly claim: GradClaim | undefined;
  private own: Tensor | undefined;

  constructor(weight: Tensor) {
    this.weight = weight;
    if (hasGradSink(weight) && fuses(weight.device, 'sinks')) this.claim = weight.claimGrad();
    if (!this.claim) this.own = Tensor.empty(weight.shape, 'float32', 'gradient', weight.device);
  }

  /** What the loss writes. */
  get handle(): Handle {
    return (this.own ?? this.claim!.target).handle;
  }

  /** To be called once, with the gradient of the loss: that of the weight, if it flows on. */
  multiplied(by: Tensor): Tensor | undefined {
    if (this.claim?.settle()) {
      scaleInPlace(this.claim.target, by);
      return undefined;
    }
    const made = this.own ?? this.claim!.target;
    const grad = writeGrad(this.weight, (target, accumulate) =>
      native.scale(target, made.handle, by.handle, 1, accumulate),
    );
    if (!this.own) made.dispose(); // it was moved
    return grad;
  }

  /** Its own tensor is that of the graph. */
  keepIn(saved: Saved): void {
    const { own } = this;
    this.own = own && saved.keep(own);
    own?.dispose();
  }

  /** Where there is no graph. */
  dispose(): void {
    this.own?.dispose();
  }
}

function scaleInPlace(x: Tensor, by: Tensor): void {
  const isOne = fuses(x.device, 'sinks') && by.hostValues?.length === 1 && by.hostValues[0] === 1;
  if (!isOne) native.scale(x.handle, x.handle, by.handle, 1, false);
}

/**
 * @internal A loss whose gradients were made with it: backward multiplies them by its incoming gradient, dx in place. Takes
 * ownership of dx and dw.
 */
export function recordLoss(name: string, loss: Tensor, x: Tensor, dx?: Tensor, dw?: HeadGradient): Tensor {
  let isKept = false;
  const result = record(name, loss, [x, dw?.weight], (saved) => {
    isKept = true;
    dw?.keepIn(saved);
    const keptDx = dx && saved.keep(dx);
    return (dLoss) => {
      const gradX = keptDx?.detach();
      if (gradX) scaleInPlace(gradX, dLoss);
      return [gradX, dw?.multiplied(dLoss)];
    };
  });
  dx?.dispose();
  if (!isKept) dw?.dispose();
  return result;
}

/**
 * Head and loss in one, chunk by chunk: logits (rows, vocab) never exist as a whole. x (rows, dim), weight (vocab, dim),
 * labels (rows) int64, already shifted, −100 ignored. Loss [] float32: Σ −log p / denominator; denominator 0 means the
 * number of labels.
 */
export function linearCrossEntropy(x: Tensor, weight: Tensor, labels: Tensor, denominator = 0): Tensor {
  const [vocab, dim] = [weight.size(0), weight.size(1)];
  const rows = x.numel / dim;
  const loss = output([], 'float32', x.device);
  const graph = isGradEnabled();
  const dx = graph && x.requiresGrad ? Tensor.empty(x.shape, x.dtype, 'activation', x.device) : undefined;
  const dw = graph && weight.requiresGrad ? new HeadGradient(weight) : undefined;
  native.linearCrossEntropy(
    loss.handle,
    dx?.handle ?? NONE,
    dw?.handle ?? NONE,
    x.handle,
    weight.handle,
    labels.handle,
    rows,
    dim,
    vocab,
    denominator,
    false,
  );
  return recordLoss('linear_cross_entropy', loss, x, dx, dw);
}

/** The same from logits (rows, vocab) float32 that exist. */
export function crossEntropy(logits: Tensor, labels: Tensor, denominator = 0): Tensor {
  const vocab = logits.size(-1);
  const rows = logits.numel / vocab;
  const loss = output([], 'float32', logits.device);
  const dLogits =
    isGradEnabled() && logits.requiresGrad
      ? Tensor.empty(logits.shape, 'float32', 'activation', logits.device)
      : undefined;
  native.crossEntropy(loss.handle, dLogits?.handle ?? NONE, logits.handle, labels.handle, rows, vocab, denominator);
  return recordLoss('cross_entropy', loss, logits, dLogits);
}
