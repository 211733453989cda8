// The loss of a causal language model. Gradients are made in the forward pass, where the logits are; backward only
// multiplies them by its incoming gradient.
import { NONE, native } from '../../native.ts';
import { isGradEnabled } from '../../tensor/grad_mode.ts';
import { Tensor } from '../../tensor/tensor.ts';
import { output, record, writeGrad } from '../record.ts';

/**
 * @internal A loss whose gradients were made with it: backward multiplies them by its incoming gradient, dx in place. Takes
 * ownership of dx and dw.
 */
export function recordLoss(name: string, loss: Tensor, x: Tensor, dx?: Tensor, weight?: Tensor, dw?: Tensor): Tensor {
  const result = record(name, loss, [x, weight], (saved) => {
    const [keptDx, keptDw] = [dx && saved.keep(dx), dw && saved.keep(dw)];
    return (dLoss) => {
      const gradX = keptDx?.detach();
      if (gradX) native.scale(gradX.handle, gradX.handle, dLoss.handle, 1, false);
      const gradW =
        keptDw &&
        writeGrad(weight!, (target, accumulate) => native.scale(target, keptDw.handle, dLoss.handle, 1, accumulate));
      return [gradX, gradW];
    };
  });
  dx?.dispose();
  dw?.dispose();
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
  const dw =
    graph && weight.requiresGrad ? Tensor.empty(weight.shape, 'float32', 'gradient', weight.device) : undefined;
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
  return recordLoss('linear_cross_entropy', loss, x, dx, weight, dw);
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
