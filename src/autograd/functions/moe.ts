// Mixture of experts (cpp/ops/moe.h): choosing experts for rows, running them on their rows, and the loss that keeps them
// equally busy. How many rows an expert has is known on the device alone.
import { type Handle, NONE, native } from '../../native.ts';
import { type Device, Tensor } from '../../tensor/tensor.ts';
import { gradient, output, record, wantsGrad, writeGrad } from '../record.ts';

/** What the routers of one forward leave for the auxiliary loss, and what its backward leaves for theirs. */
export interface RouterBalance {
  /** (layers, 2, experts) float32: choices and probability sums. A layer that runs again writes the same. */
  sums: Tensor;
  /** (experts) float32: the loss's gradient by the probabilities of one row; zero until its backward has run. */
  gradient: Tensor;
  /** Rows that count, the first ones. */
  rows: number;
  coefficient: number;
  /** Factor on the gradient that routers get: 1 / n where n ranks each make all of it and their router gradients are summed. */
  gradScale: number;
}

/** Room for the balance of one forward over `rows` rows. */
export function routerBalance(
  layers: number,
  experts: number,
  rows: number,
  coefficient: number,
  device: Device = 'cpu',
): RouterBalance {
  const zero = output([experts], 'float32', device);
  native.fill(zero.handle, 0);
  return { sums: output([layers, 2, experts], 'float32', device), gradient: zero, rows, coefficient, gradScale: 1 };
}

/** Where the rows go. */
export interface Routing {
  /** (rows, topK) float32 */
  weights: Tensor;
  /** (rows · topK) int32: choices (row · topK + slot), grouped by expert */
  order: Tensor;
  /** (experts + 1) int32: the groups */
  offsets: Tensor;
}

/** The part of a balance that is one layer's. */
export interface LayerBalance {
  balance: RouterBalance;
  layer: number;
}

/**
 * The topK experts of each row by softmax(logits), with weights that sum to 1; logits (rows, experts). As
 * MixtralTopKRouter of Transformers, ties too.
 */
export function route(logits: Tensor, topK: number, own?: LayerBalance): Routing {
  const [rows, experts] = [logits.size(0), logits.size(1)];
  const weights = output([rows, topK], 'float32', logits.device);
  const [order, offsets] = [
    output([rows * topK], 'int32', logits.device),
    output([experts + 1], 'int32', logits.device),
  ];
  using chosen = Tensor.empty([rows, topK], 'int32', 'activation', logits.device);
  using probs = Tensor.empty([rows, experts], 'float32', 'activation', logits.device);
  using slot = own?.balance.sums.narrow(own.layer, 1);
  const counted = own?.balance.rows ?? 0;
  native.routingForward(
    weights.handle,
    chosen.handle,
    order.handle,
    offsets.handle,
    probs.handle,
    slot?.handle ?? NONE,
    logits.handle,
    rows,
    experts,
    topK,
    counted,
  );
  record('routing', weights, [logits], (saved) => {
    const [keptWeights, keptChosen, keptProbs] = [saved.keep(weights), saved.keep(chosen), saved.keep(probs)];
    const dProbs = own && saved.keep(own.balance.gradient);
    return (dWeights) => {
      const dLogits = gradient(logits.shape, logits.dtype, logits.device);
      native.routingBackward(
        dLogits.handle,
        dWeights.handle,
        keptWeights.handle,
        keptChosen.handle,
        keptProbs.handle,
        dProbs?.handle ?? NONE,
        rows,
        experts,
        topK,
        counted,
        own?.balance.gradScale ?? 1,
      );
      return [dLogits];
    };
  });
  return { weights, order, offsets };
}

/** One expert: w2 (silu(w1 x) · (w3 x)); w1 and w3 (inner, dim), w2 (dim, inner). */
export interface ExpertWeights {
  w1: Tensor;
  w2: Tensor;
  w3: Tensor;
}

/** x (rows, dim) through the experts that each row is routed to: the weighted sum (rows, dim). */
export function runExperts(x: Tensor, { weights, order, offsets }: Routing, experts: readonly ExpertWeights[]): Tensor {
  const [w1, w2, w3] = [experts.map((e) => e.w1), experts.map((e) => e.w2), experts.map((e) => e.w3)];
  const matrices = [...w1, ...w2, ...w3];
  const [inner, dim] = [w1[0]!.size(0), w1[0]!.size(1)];
  if (x.size(-1) !== dim)
    throw new RangeError(`runExperts: w1 [${w1[0]!.shape}] wants ${dim} input features but x is [${x.shape}]`);
  const [rows, topK] = [weights.size(0), weights.size(1)];
  const y = output(x.shape, x.dtype, x.device);
  // What backward cannot make again at small cost; without a graph they are never whole.
  const kept = wantsGrad(x, weights, ...matrices)
    ? [0, 1].map(() => Tensor.empty([rows * topK, inner], x.dtype, 'activation', x.device))
    : [];
  native.expertsForward(
    y.handle,
    kept[0]?.handle ?? NONE,
    kept[1]?.handle ?? NONE,
    x.handle,
    weights.handle,
    order.handle,
    offsets.handle,
    handles(w1),
    handles(w2),
    handles(w3),
    rows,
    dim,
    inner,
    topK,
  );
  const result = record('experts', y, [x, weights, ...matrices], (saved, [needsX, needsRouting, ...needs]) => {
    const [x_, gate, up, weights_, order_, offsets_] = [x, ...kept, weights, order, offsets].map((tensor) =>
      saved.keep(tensor),
    ) as [Tensor, Tensor, Tensor, Tensor, Tensor, Tensor];
    const keptMatrices = matrices.map((matrix) => saved.keep(matrix));
    return (dy) => {
      const dx = needsX ? gradient(x.shape, x.dtype, x.device) : undefined;
      const dWeights = gradient(weights.shape, 'float32', weights.device);
      const of = <T>(list: readonly T[], matrix: 0 | 1 | 2): T[] =>
        list.slice(matrix * experts.length, (matrix + 1) * experts.length);
      const dMatrices = writeGrads(matrices, needs, (targets, accumulate) =>
        native.expertsBackward(
          dx?.handle ?? NONE,
          dWeights.handle,
          of(targets, 0),
          of(targets, 1),
          of(targets, 2),
          dy.handle,
          x_.handle,
          gate.handle,
          up.handle,
          weights_.handle,
          order_.handle,
          offsets_.handle,
          handles(of(keptMatrices, 0)),
          handles(of(keptMatrices, 1)),
          handles(of(keptMatrices, 2)),
          accumulate,
          rows,
          dim,
          inner,
          topK,
        ),
      );
      if (!needsRouting) dWeights.dispose();
      return [dx, needsRouting ? dWeights : undefined, ...dMatrices];
    };
  });
  for (const tensor of kept) tensor.dispose();
  return result;
}

const handles = (tensors: readonly Tensor[]): Handle[] => tensors.map((tensor) => tensor.handle);

/** As writeGrad, for inputs whose gradients one op writes together; NONE where none is needed. */
function writeGrads(
  inputs: readonly Tensor[],
  needs: readonly boolean[],
  write: (targets: Handle[], accumulate: boolean[]) => void,
): (Tensor | undefined)[] {
  const targets: Handle[] = inputs.map(() => NONE);
  const flags: boolean[] = inputs.map(() => false);
  const grads: (Tensor | undefined)[] = inputs.map(() => undefined);
  const from = (i: number): void => {
    if (i === inputs.length) write(targets, flags);
    else if (!needs[i]) from(i + 1);
    else {
      grads[i] = writeGrad(inputs[i]!, (target, accumulate) => {
        targets[i] = target;
        flags[i] = accumulate;
        from(i + 1);
      });
    }
  };
  from(0);
  return grads;
}

/**
 * loss + coefficient · the load balancing loss of the Switch Transformer over all layers. Its node is the last of the
 * forward, so the gradient it leaves in the balance is there when the routers' backwards read it.
 */
export function addBalancingLoss(loss: Tensor, { sums, gradient: dProbs, rows, coefficient }: RouterBalance): Tensor {
  const [layers, experts] = [sums.size(0), sums.size(2)];
  const total = output([], 'float32', loss.device);
  native.balancingLossForward(total.handle, loss.handle, sums.handle, layers, experts, rows, coefficient);
  return record('balancing_loss', total, [loss], (saved) => {
    const [keptSums, target] = [saved.keep(sums), saved.keep(dProbs)];
    return (dTotal) => {
      native.balancingLossBackward(target.handle, dTotal.handle, keptSums.handle, layers, experts, rows, coefficient);
      return [dTotal.detach()];
    };
  });
}
