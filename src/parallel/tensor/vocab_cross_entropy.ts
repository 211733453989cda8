// The loss where each rank of a group holds a part of the vocabulary: head rows first … first + valid, then padding up to the
// size that all parts share. The ranks exchange three numbers a row, and agree on the loss to the bit. Every rank of the
// group makes the same calls.

import { HeadGradient, recordLoss } from '../../autograd/functions/cross_entropy.ts';
import { gradient, output, record } from '../../autograd/record.ts';
import type { ProcessGroup } from '../../distributed/process_group.ts';
import { NONE, native } from '../../native.ts';
import { isGradEnabled } from '../../tensor/grad_mode.ts';
import { deviceNumber, Tensor } from '../../tensor/tensor.ts';

export interface VocabularyPart {
  /** The first token of this rank's part. */
  first: number;
  /** Tokens in it; the columns behind them are padding. */
  valid: number;
  /** The ranks that hold the parts, in the order of the tokens. */
  group: ProcessGroup;
  /** What the summed loss is divided by. Default 0: the number of labels. */
  denominator?: number | undefined;
}

/** Loss of rows `from` … of a batch; `logits` may become its own gradient. `own` and `all` are room for statistics. */
function lossOfRows(
  {
    loss,
    dLogits,
    logits,
    labels,
    own,
    all,
  }: Record<'loss' | 'logits' | 'labels' | 'own' | 'all', Tensor> & {
    dLogits: Tensor | undefined;
  },
  from: number,
  { first, valid, group, denominator = 0 }: VocabularyPart,
): void {
  const [rows, vocab] = [logits.size(0), logits.size(1)];
  using stats = own.slice(0, [rows, 3]);
  using gathered = all.slice(0, [group.size, rows, 3]);
  using rowLabels = labels.slice(from, [rows]);
  native.vocabStats(stats.handle, logits.handle, rowLabels.handle, rows, vocab, first, valid);
  group.allGather(gathered.handle, stats.handle);
  native.vocabCrossEntropy(
    loss.handle,
    dLogits?.handle ?? NONE,
    logits.handle,
    gathered.handle,
    labels.handle,
    group.size,
    from,
    rows,
    vocab,
    first,
    valid,
    denominator,
    from > 0,
  );
}

/**
 * `linearCrossEntropy` with this rank's part of the head: x (rows, dim) and labels (rows) int64, of the whole vocabulary, are
 * the same on every rank of the group; weight (part, dim). The loss is that of the whole vocabulary. The gradient of x is this
 * rank's part of a sum over the group, which the caller makes.
 */
export function vocabParallelLinearCrossEntropy(
  x: Tensor,
  weight: Tensor,
  labels: Tensor,
  part: VocabularyPart,
): Tensor {
  const [vocab, dim] = [weight.size(0), weight.size(1)];
  const rows = x.numel / dim;
  const loss = output([], 'float32', x.device);
  const graph = isGradEnabled();
  const dx = graph && x.requiresGrad ? Tensor.empty(x.shape, x.dtype, 'activation', x.device) : undefined;
  const dw = graph && weight.requiresGrad ? new HeadGradient(weight) : undefined;
  const chunk = Math.max(1, native.lossChunkRows(deviceNumber(x.device), vocab, dim, rows));
  using logits = Tensor.empty([chunk, vocab], 'float32', 'activation', x.device);
  // Gradients of the logits have the compute dtype, as in the fused op: in float32 they overwrite the logits.
  const separate = (dx || dw) && x.dtype !== 'float32';
  using dLogits = separate ? Tensor.empty([chunk, vocab], x.dtype, 'activation', x.device) : logits.detach();
  // Small enough for a mailbox: memory that peers can read would cost a round more.
  using own = Tensor.empty([chunk, 3], 'float32', 'activation', x.device);
  using all = Tensor.empty([part.group.size, chunk, 3], 'float32', 'activation', x.device);
  for (let from = 0; from === 0 || from < rows; from += chunk) {
    const n = Math.min(chunk, rows - from);
    using xRows = x.slice(from * dim, [n, dim]);
    using logitRows = logits.narrow(0, n);
    using dLogitRows = dLogits.narrow(0, n);
    native.linearForward(logitRows.handle, xRows.handle, weight.handle, NONE, NONE, n, dim, vocab);
    const gradients = dx || dw ? dLogitRows : undefined;
    lossOfRows({ loss, dLogits: gradients, logits: logitRows, labels, own, all }, from, part);
    if (dw) {
      native.linearBackwardWeight(dw.handle, NONE, dLogitRows.handle, xRows.handle, n, dim, vocab, from > 0);
    }
    if (dx) {
      using dxRows = dx.slice(from * dim, [n, dim]);
      native.linearBackwardInput(dxRows.handle, dLogitRows.handle, weight.handle, NONE, n, dim, vocab);
    }
  }
  return recordLoss('vocab_parallel_linear_cross_entropy', loss, x, dx, dw);
}

/**
 * Columns that are split over the group, whole on every rank: x (rows, part) → (rows, columns), without the padding at the
 * end. Every rank then computes the same of them, so a rank's gradient is its own columns of what comes back.
 */
export function gatherColumns(x: Tensor, group: ProcessGroup, columns: number): Tensor {
  const part = x.size(-1);
  const rows = x.numel / part;
  if (columns > part * group.size) {
    throw new RangeError(`gatherColumns: ${group.size} parts of ${part} columns do not hold ${columns}`);
  }
  const out = output([...x.shape.slice(0, -1), columns], x.dtype, x.device);
  const validOf = (rank: number): number => Math.max(0, Math.min(part, columns - rank * part));
  using parts = Tensor.empty([group.size, rows, part], x.dtype, 'activation', x.device);
  group.allGather(parts.handle, x.handle);
  for (let rank = 0; rank < group.size; rank++) {
    const source = rank * rows * part;
    native.copyRows(out.handle, parts.handle, rows, validOf(rank), rank * part, columns, source, part);
  }
  return record('gather_columns', out, [x], () => (dOut) => {
    const dx = gradient(x.shape, x.dtype, x.device);
    const valid = validOf(group.rank);
    if (valid < part) native.fill(dx.handle, 0);
    native.copyRows(dx.handle, dOut.handle, rows, valid, 0, part, group.rank * part, columns);
    return [dx];
  });
}
