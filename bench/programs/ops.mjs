// Times single ops, one line of JSON: { times: { case: { least, median } } } in microseconds.
//   node bench/programs/ops.mjs '[{"name":"q","op":"linear_forward","dtype":"float32","rows":512,"in":1024,"out":1024}]' THREADS SAMPLES MS
import { NONE, native } from '../../dist/native.js';
import { dtypeNumber } from '../../dist/tensor/dtype.js';
import { timeCalls } from '../lib/timing.mjs';

const [cases, threads, samples, milliseconds] = process.argv.slice(2).map((text) => JSON.parse(text));
native.setNumThreads(threads);

const made = [];
function keep(handle) {
  made.push(handle);
  return handle;
}
const empty = (numel, dtype) => keep(native.tensorEmpty(numel, dtypeNumber(dtype), 0));
function normal(numel, dtype, std = 1) {
  const handle = empty(numel, dtype);
  native.randomFill(handle, 1n, `tensor ${made.length}`, 0, true, 0, std);
  return handle;
}
function integers(values, dtype) {
  const handle = empty(values.length, dtype);
  native.tensorWrite(handle, dtype === 'int64' ? BigInt64Array.from(values, BigInt) : Int32Array.from(values));
  return handle;
}
const labels = (rows, vocab) =>
  integers(
    Array.from({ length: rows }, (_, row) => (row * 7919) % vocab),
    'int64',
  );

/** Operands of an attention over rows / length packed sequences. */
function attentionOperands({ dtype, rows, length, heads, kvHeads, headDim }) {
  const [wide, narrow] = [rows * heads * headDim, rows * kvHeads * headDim];
  const [q, k, v] = [normal(wide, dtype), normal(narrow, dtype), normal(narrow, dtype)];
  const [o, lse] = [empty(wide, dtype), empty(rows * heads, 'float32')];
  const cu = integers(
    Array.from({ length: rows / length + 1 }, (_, i) => i * length),
    'int32',
  );
  const sizes = [rows / length, heads, kvHeads, headDim, 0, headDim ** -0.5];
  const forward = () => native.attentionForward(o, lse, q, k, v, cu, cu, rows, rows, ...sizes);
  return { wide, narrow, q, k, v, o, lse, cu, sizes, forward };
}

// op → the sizes of a case → a function that enqueues it once.
const ops = {
  linear_forward({ dtype, rows, in: inner, out }) {
    const [y, x, w] = [empty(rows * out, dtype), normal(rows * inner, dtype), normal(out * inner, dtype, 0.02)];
    return () => native.linearForward(y, x, w, NONE, NONE, rows, inner, out);
  },
  linear_backward_input({ dtype, rows, in: inner, out }) {
    const [dx, dy, w] = [empty(rows * inner, dtype), normal(rows * out, dtype), normal(out * inner, dtype, 0.02)];
    return () => native.linearBackwardInput(dx, dy, w, NONE, rows, inner, out);
  },
  linear_backward_weight({ dtype, rows, in: inner, out }) {
    const [dw, dy, x] = [empty(out * inner, dtype), normal(rows * out, dtype), normal(rows * inner, dtype)];
    return () => native.linearBackwardWeight(dw, NONE, dy, x, rows, inner, out, false);
  },
  attention_forward: (sizes) => attentionOperands(sizes).forward,
  attention_backward(sizes) {
    const { wide, narrow, q, k, v, o, lse, cu, sizes: rest, forward } = attentionOperands(sizes);
    const { dtype, rows } = sizes;
    const [dO, dq, dk, dv] = [normal(wide, dtype), empty(wide, dtype), empty(narrow, dtype), empty(narrow, dtype)];
    forward();
    return () => native.attentionBackward(dq, dk, dv, dO, o, q, k, v, lse, cu, rows, ...rest);
  },
  rms_norm_forward({ dtype, rows, dim }) {
    const [y, rstd] = [empty(rows * dim, dtype), empty(rows, 'float32')];
    const [x, w] = [normal(rows * dim, dtype), normal(dim, dtype)];
    return () => native.rmsNormForward(y, rstd, x, w, rows, dim, 1e-6);
  },
  rms_norm_backward({ dtype, rows, dim }) {
    const [dx, dw, y] = [empty(rows * dim, dtype), empty(dim, dtype), empty(rows * dim, dtype)];
    const [dy, x, w] = [normal(rows * dim, dtype), normal(rows * dim, dtype), normal(dim, dtype)];
    const rstd = empty(rows, 'float32');
    native.rmsNormForward(y, rstd, x, w, rows, dim, 1e-6);
    return () => native.rmsNormBackward(dx, dw, dy, x, w, rstd, NONE, rows, dim, false);
  },
  swiglu_forward({ dtype, rows, dim }) {
    const [y, gate, up] = [empty(rows * dim, dtype), normal(rows * dim, dtype), normal(rows * dim, dtype)];
    return () => native.swigluForward(y, gate, up);
  },
  swiglu_backward({ dtype, rows, dim }) {
    const [dGate, dUp] = [empty(rows * dim, dtype), empty(rows * dim, dtype)];
    const [dy, gate, up] = [normal(rows * dim, dtype), normal(rows * dim, dtype), normal(rows * dim, dtype)];
    return () => native.swigluBackward(dGate, dUp, dy, gate, up);
  },
  // Loss and gradient of the logits.
  cross_entropy({ rows, vocab }) {
    const [loss, dLogits, logits] = [
      empty(1, 'float32'),
      empty(rows * vocab, 'float32'),
      normal(rows * vocab, 'float32'),
    ];
    const ids = labels(rows, vocab);
    return () => native.crossEntropy(loss, dLogits, logits, ids, rows, vocab, 0);
  },
  // Head and loss: logits, loss, gradients of the rows and of the head.
  head_and_loss({ dtype, rows, dim, vocab }) {
    const [loss, dx, dw] = [empty(1, 'float32'), empty(rows * dim, dtype), empty(vocab * dim, dtype)];
    const [x, w, ids] = [normal(rows * dim, dtype), normal(vocab * dim, dtype, 0.02), labels(rows, vocab)];
    return () => native.linearCrossEntropy(loss, dx, dw, x, w, ids, rows, dim, vocab, 0, false);
  },
  adamw({ dtype, numel }) {
    const [param, grad] = [normal(numel, dtype, 0.02), normal(numel, dtype)];
    const [first, second] = [empty(numel, 'float32'), empty(numel, 'float32')];
    for (const state of [first, second]) native.fill(state, 0);
    let step = 0;
    return () => native.adamw(param, grad, first, second, NONE, NONE, NONE, 1e-4, 0.9, 0.999, 1e-8, 0.01, ++step);
  },
};

const times = {};
for (const { name, op, ...sizes } of cases) {
  const enqueue = ops[op](sizes);
  times[name] = timeCalls(enqueue, () => native.streamSynchronize(0), { samples, milliseconds });
  for (const handle of made.splice(0)) native.tensorRelease(handle);
}
console.log(JSON.stringify({ mark: 'done', rank: 0, pid: process.pid, times }));
