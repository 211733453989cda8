// Backward: runs the nodes below a tensor by falling sequence number. A gradient that reaches a tensor twice is summed;
// leaves accumulate into `.grad`. Everything that a node saved is freed when it has run.
import { processState } from '../core/context.ts';
import { native } from '../native.ts';
import { withGrad } from './grad_mode.ts';
import type { GradNode, InputGrads } from './node.ts';
import { Tensor } from './tensor.ts';

/** For each backward in progress, the outermost first: what to call when it has enqueued everything. */
const finished: (() => void)[][] = processState<(() => void)[][]>(
  'backward',
  'callbacks of each backward in progress',
  [],
);

/** @internal Runs `callback` once when the outermost backward in progress has enqueued everything. */
export function onBackwardEnd(callback: () => void): void {
  const frame = finished[0];
  if (!frame) throw new Error('onBackwardEnd is only valid during backward');
  frame.push(callback);
}

/** @internal What stands for the outermost backward in progress; undefined outside. */
export function currentBackward(): object | undefined {
  return finished[0];
}

/** @internal Sums `b` into the gradient `a`, in place when nothing else shares its storage. Disposes what it replaces. */
export function sumInto(a: Tensor, b: Tensor): Tensor {
  const target = native.tensorUseCount(a.handle) === 1 ? a : Tensor.empty(a.shape, a.dtype, 'activation', a.device);
  native.add(target.handle, a.handle, b.handle);
  b.dispose();
  target.hostValues = undefined;
  if (target !== a) a.dispose();
  return target;
}

/** @internal Adds `gradient` (owned) to a leaf's `.grad`. */
export function accumulateLeaf(leaf: Tensor, gradient: Tensor): void {
  if (!leaf.grad) {
    const own = native.tensorUseCount(gradient.handle) === 1 && gradient.dtype === leaf.dtype;
    if (own) {
      leaf.grad = gradient;
      return;
    }
    leaf.grad = Tensor.empty(leaf.shape, leaf.dtype, 'gradient', leaf.device);
    leaf.grad.copyFrom(gradient);
  } else native.add(leaf.grad.handle, leaf.grad.handle, gradient.handle);
  gradient.dispose();
}

/** What has reached `input` so far; it has none then. */
function taken(input: Tensor | undefined, grads: Map<GradNode, Tensor>): Tensor | undefined {
  if (!input) return undefined;
  const source = input.gradFn;
  const earlier = source ? grads.get(source) : input.grad;
  if (source) grads.delete(source);
  else input.grad = undefined;
  return earlier;
}

function reachable(root: GradNode): GradNode[] {
  const seen = new Set<GradNode>([root]);
  const stack = [root];
  for (let node = stack.pop(); node; node = stack.pop()) {
    for (const input of node.inputs) {
      if (input?.gradFn && !seen.has(input.gradFn)) {
        seen.add(input.gradFn);
        stack.push(input.gradFn);
      }
    }
  }
  return [...seen].sort((a, b) => b.sequence - a.sequence);
}

/** @internal See Tensor.backward. */
export function runBackward(root: Tensor, gradient?: Tensor): void {
  if (!root.requiresGrad) throw new Error('backward() on a tensor that does not require grad and has no graph');
  if (!gradient && root.numel !== 1) {
    throw new Error(`backward() without a gradient wants a one-element tensor but the shape is [${root.shape}]`);
  }
  const seed = gradient ? gradient.detach() : Tensor.full(root.shape, 1, root.dtype, 'activation', root.device);
  if (!gradient) seed.hostValues = [1];
  if (!root.gradFn) {
    accumulateLeaf(root, seed);
    return;
  }
  const grads = new Map<GradNode, Tensor>([[root.gradFn, seed]]);
  const callbacks: (() => void)[] = [];
  finished.push(callbacks);
  try {
    withGrad(false, () => {
      for (const node of reachable(root.gradFn!)) {
        const gradOut = grads.get(node);
        if (!gradOut) {
          node.release();
          continue;
        }
        grads.delete(node);
        if (node.done)
          throw new Error(`backward() a second time through ${node.name}: the graph was freed by the first`);
        node.done = true;
        let inputGrads: InputGrads;
        try {
          inputGrads = node.backward(gradOut, (i) => taken(node.inputs[i], grads));
        } finally {
          gradOut.dispose();
          node.release();
        }
        node.inputs.forEach((input, i) => {
          const grad = inputGrads[i];
          if (!grad) return;
          if (!input) {
            grad.dispose();
            return;
          }
          if (!input.gradFn) {
            accumulateLeaf(input, grad);
            return;
          }
          const earlier = grads.get(input.gradFn);
          grads.set(input.gradFn, earlier ? sumInto(earlier, grad) : grad);
        });
      }
    });
    // Callbacks of a nested backward (checkpointing) wait for the outermost one: onBackwardEnd uses finished[0].
    for (const callback of callbacks) callback();
  } finally {
    finished.pop();
    for (const grad of grads.values()) grad.dispose();
  }
}
