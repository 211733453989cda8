// The ops of the addon, as types.

/** A native tensor, event, file, store or group: one number that holds kind, generation and slot. */
export type Handle = number;

/** What an op takes, as RZ_OPERANDS of its struct in cpp/ops lists it: names and types (`tensor?` may be absent) in order. */
export interface NativeOpSignature {
  name: string;
  operands: [name: string, type: string][];
}

type H = Handle;
/** Of an operand that may be absent: NONE. */
type O = Handle;
type N = number;

// The fields of the op's struct in cpp/ops/*.h; test/unit/op_signatures.test.ts compares. Nothing here waits.
export interface NativeOps {
  /** Ops of a device, by their names in cpp/ops. */
  opNames(device?: number): string[];
  opSignatures(): NativeOpSignature[];
  fill(x: H, value: N): void;
  copy(dst: H, src: H): void;
  copyRows(
    dst: H, src: H,
    rows: N, cols: N, dstOffset: N, dstPitch: N, srcOffset: N, srcPitch: N,
  ): void;
  add(y: H, a: H, b: H): void;
  scale(y: H, x: H, by: O, factor: N, accumulate: boolean): void;
  sumSquares(out: H, x: H, accumulate: boolean): void;
  clipFactor(norm: H, factor: H, sum: H, maxNorm: N): void;
  randomFill(x: H, seed: bigint, key: string, offset: N, normal: boolean, a: N, b: N): void;
  dropout(y: H, x: H, rows: H, columns: N, firstColumn: N, p: N, seed: bigint, key: string): void;
  embeddingForward(out: H, ids: H, table: H, rows: N, vocab: N, dim: N, first: N): void;
  embeddingBackward(dTable: H, ids: H, dOut: H, rows: N, vocab: N, dim: N, first: N, accumulate: boolean): void;
  linearForward(y: H, x: H, w: H, b: O, residual: O, rows: N, inFeatures: N, outFeatures: N): void;
  linearBackwardInput(dx: H, dy: H, w: H, earlier: O, rows: N, inFeatures: N, outFeatures: N): void;
  linearBackwardWeight(dw: H, db: O, dy: H, x: H, rows: N, inFeatures: N, outFeatures: N, accumulate: boolean): void;
  quantizeWeight(q: H, x: H, scheme: N, lines: N, piece: N): void;
  sliceQuantized(
    part: H, whole: H, scheme: N, partNumel: N, lines: N, piece: N,
    wholeNumel: N, wholeLines: N, wholePiece: N, firstLine: N, count: N, from: N, stride: N,
  ): void;
  dequantizeWeight(y: H, w: H, scheme: N, lines: N, piece: N): void;
  quantizedLinearForward(
    y: H, x: H, w: H, b: O, residual: O, rows: N, inFeatures: N, outFeatures: N, scheme: N, lines: N, piece: N,
  ): void;
  quantizedLinearBackwardInput(
    dx: H, dy: H, w: H, earlier: O, rows: N, inFeatures: N, outFeatures: N, scheme: N, lines: N, piece: N,
  ): void;
  rowSquares(squares: H, w: H, update: O, rows: N, cols: N): void;
  doraForward(y: H, x: H, m: H, squares: H, rows: N, dim: N): void;
  doraBackward(dm: H, dy: H, x: H, squares: H, rows: N, dim: N, accumulate: boolean): void;
  rmsNormForward(y: H, rstd: H, x: H, w: H, rows: N, dim: N, eps: N): void;
  rmsNormBackward(
    dx: H, dw: O, dy: H, x: H, w: H, rstd: H, earlier: O,
    rows: N, dim: N, accumulate: boolean,
  ): void;
  layerNormForward(y: H, mean: H, rstd: H, x: H, w: H, b: H, rows: N, dim: N, eps: N): void;
  layerNormBackward(
    dx: H, dw: O, db: O, dy: H, x: H, w: H, mean: H, rstd: H,
    rows: N, dim: N, accumulateW: boolean, accumulateB: boolean,
  ): void;
  ropeTable(cos: H, sin: H, positions: H, invFreq: H, rows: N, half: N, attentionFactor: N): void;
  rope(y: H, x: H, cos: H, sin: H, rows: N, heads: N, headDim: N, rotary: N, inverse: boolean): void;
  splitRope(
    q: H, k: H, v: H, qkv: H, cos: H, sin: H,
    rows: N, heads: N, kvHeads: N, headDim: N, rotary: N,
  ): void;
  mergeRope(
    qkv: H, q: H, k: H, v: H, cos: H, sin: H,
    rows: N, heads: N, kvHeads: N, headDim: N, rotary: N,
  ): void;
  splitQkv(q: H, k: H, v: H, qkv: H, rows: N, heads: N, headDim: N): void;
  mergeQkv(qkv: H, q: H, k: H, v: H, rows: N, heads: N, headDim: N): void;
  attentionForward(
    o: H, lse: H, q: H, k: H, v: H, cuQ: H, cuK: H,
    qRows: N, kRows: N, sequences: N, heads: N, kvHeads: N, headDim: N, window: N, scale: N,
  ): void;
  attentionBackward(
    dq: H, dk: H, dv: H, dO: H, o: H, q: H, k: H, v: H, lse: H, cu: H,
    rows: N, sequences: N, heads: N, kvHeads: N, headDim: N, window: N, scale: N,
  ): void;
  swigluForward(y: H, gate: H, up: H): void;
  swigluBackward(dGate: H, dUp: H, dy: H, gate: H, up: H): void;
  packedSwigluForward(y: H, gateUp: H, rows: N, inner: N): void;
  packedSwigluBackward(dGateUp: H, dy: H, gateUp: H, rows: N, inner: N): void;
  geluForward(y: H, x: H, tanh: boolean): void;
  geluBackward(dx: H, dy: H, x: H, tanh: boolean): void;
  routingForward(
    weights: H, chosen: H, order: H, offsets: H, probs: H, balance: O, logits: H,
    rows: N, experts: N, topK: N, balanceRows: N,
  ): void;
  routingBackward(
    dLogits: H, dWeights: H, weights: H, chosen: H, probs: H, dProbs: O,
    rows: N, experts: N, topK: N, balanceRows: N, dProbsScale: N,
  ): void;
  expertsForward(
    y: H, gate: O, up: O, x: H, weights: H, order: H, offsets: H, w1: H[], w2: H[], w3: H[],
    rows: N, dim: N, inner: N, topK: N,
  ): void;
  /** Flags of dw1, then dw2, then dw3. */
  expertsBackward(
    dx: O, dWeights: H, dw1: O[], dw2: O[], dw3: O[], dy: H, x: H, gate: H, up: H, weights: H, order: H, offsets: H,
    w1: H[], w2: H[], w3: H[], accumulate: boolean[], rows: N, dim: N, inner: N, topK: N,
  ): void;
  balancingLossForward(total: H, loss: H, balance: H, layers: N, experts: N, rows: N, coefficient: N): void;
  balancingLossBackward(dProbs: H, dTotal: H, balance: H, layers: N, experts: N, rows: N, coefficient: N): void;
  linearCrossEntropy(
    loss: H, dx: O, dw: O, x: H, w: H, labels: H,
    rows: N, dim: N, vocab: N, denominator: N, accumulate: boolean,
  ): void;
  crossEntropy(loss: H, dLogits: O, logits: H, labels: H, rows: N, vocab: N, denominator: N): void;
  vocabStats(stats: H, logits: H, labels: H, rows: N, vocab: N, first: N, valid: N): void;
  vocabCrossEntropy(
    loss: H, dLogits: O, logits: H, stats: H, labels: H,
    ranks: N, from: N, rows: N, vocab: N, first: N, valid: N, denominator: N, accumulate: boolean,
  ): void;
  adamw(
    param: H, grad: H, expAvg: H, expAvgSq: H, segments: O, gradScale: O, copy: O,
    lr: N, beta1: N, beta2: N, eps: N, weightDecay: N, step: N,
  ): void;
  adamw8bitPeaks(
    peaks: H, cut: H, grad: H, expAvg: H, expAvgSq: H, expAvgScale: H, expAvgSqScale: H, runs: H, signedMap: H, unsignedMap: H,
    gradScale: O, beta1: N, beta2: N,
  ): void;
  adamw8bit(
    param: H, grad: H, expAvg: H, expAvgSq: H, expAvgScale: H, expAvgSqScale: H, runs: H, signedMap: H, unsignedMap: H,
    cut: O, peaks: O, gradScale: O, copy: O, lr: N, beta1: N, beta2: N, eps: N, weightDecay: N, step: N,
  ): void;
  sgd(
    param: H, grad: H, momentumBuffer: O, segments: O, gradScale: O, copy: O,
    lr: N, momentum: N, dampening: N, weightDecay: N, nesterov: boolean, step: N,
  ): void;
  adafactorSums(
    rowSums: H, columnSums: H, grad: H, gradScale: O,
    first: N, width: N, row: N, column: N,
  ): void;
  adafactorFactors(rows: H, columns: H, mean: H, rowSums: H, columnSums: H, weight: N): void;
  adafactorNorm(
    out: H, grad: H, gradScale: O, variance: O, rows: O, columns: O, mean: O,
    first: N, width: N, row: N, column: N, eps1: N, weight: N,
  ): void;
  adafactorStep(
    param: H, grad: H, gradScale: O, copy: O, variance: O, rows: O, columns: O, mean: O, paramSquares: H, updateSquares: H,
    first: N, width: N, row: N, column: N, numel: N, lr: N, rho: N, eps1: N, eps2: N, clip: N, weightDecay: N,
  ): void;
}
