// How an op joins the graph: allocate its output, and record what backward needs.
import { type Handle, native } from '../native.ts';
import type { DType } from '../tensor/dtype.ts';
import { sumInto } from '../tensor/engine.ts';
import { fuses } from '../tensor/fusions.ts';
import { isGradEnabled } from '../tensor/grad_mode.ts';
import { type GradNode, type InputGrads, nextSequence, type TakeGrad } from '../tensor/node.ts';
import { track } from '../tensor/scope.ts';
import { type Device, type Shape, Tensor } from '../tensor/tensor.ts';

/** An uninitialised op result, owned by the innermost scope. `device` is that of the op's inputs. */
export function output(shape: Shape, dtype: DType, device: Device): Tensor {
  const tensor = Tensor.empty(shape, dtype, 'activation', device);
  track(tensor);
  return tensor;
}

/** An uninitialised gradient, owned by the engine. */
export function gradient(shape: Shape, dtype: DType, device: Device): Tensor {
  return Tensor.empty(shape, dtype, 'activation', device);
}

/** Where the gradient of a leaf is written: `accumulate` adds to what is there. */
export interface GradSink {
  target: Tensor;
  accumulate: boolean;
}

/**
 * Room for the gradient of a leaf before backward has come, where it will be wanted. Until then it counts for nothing: others may
 * need the place, and move what is there.
 */
export interface GradClaim {
  /** float32. Of the claim's owner; it may be another tensor each time. */
  readonly target: Tensor;
  /** Backward is here. Whether the gradient is in its place, and counts from now on; else the caller adds `target` and disposes it. */
  settle(): boolean;
}

/** Ranks whose parts of a gradient are added up. */
export interface GradSum {
  allReduce(tensor: Handle, op: 'sum'): void;
}

/** @internal A parameter decides itself where its gradient lives (nn/parameter.ts, parallel/fsdp). */
export interface HasGradSink {
  gradSink(): GradSink;
  /** Undefined where there is no such room. */
  claimGrad(): GradClaim | undefined;
  gradSum: GradSum | undefined;
  /** Read at backward time: FSDP frees and gathers again in between. */
  readonly isParameter: true;
}

/** @internal */
export function hasGradSink(tensor: Tensor): tensor is Tensor & HasGradSink {
  return 'isParameter' in tensor;
}

/**
 * Keeps a tensor for backward. Parameters are kept by reference (their data may move meanwhile); others by a handle of
 * their own, so that scopes may dispose the original.
 */
export class Saved {
  private readonly own: Tensor[] = [];

  keep(tensor: Tensor): Tensor {
    if (hasGradSink(tensor)) return tensor;
    const kept = tensor.detach();
    this.own.push(kept);
    return kept;
  }

  release(): void {
    for (const tensor of this.own) tensor.dispose();
    this.own.length = 0;
  }
}

/**
 * For an op whose backward reads `tensor`: what gives it then, to be disposed by the caller. It is kept, or where the op that made it
 * can make it again, made.
 */
export function keepOrRemake(saved: Saved, tensor: Tensor): () => Tensor {
  const { remake, shape, dtype, device } = tensor;
  if (!remake) {
    const kept = saved.keep(tensor);
    return () => kept.detach();
  }
  return () => {
    const again = gradient(shape, dtype, device);
    remake(again);
    return again;
  };
}

/**
 * Writes the gradient of an input of a leaf-like weight through its sink, or into a fresh tensor that flows on.
 * `write(target, accumulate)` gets the handle to fill.
 */
export function writeGrad(input: Tensor, write: (target: Handle, accumulate: boolean) => void): Tensor | undefined {
  if (hasGradSink(input)) {
    const { target, accumulate } = input.gradSink();
    if (!input.gradSum) {
      write(target.handle, accumulate);
      return undefined;
    }
    // Only this contribution is summed: what the sink holds has been.
    const part = accumulate ? gradient(target.shape, target.dtype, target.device) : target;
    write(part.handle, false);
    input.gradSum.allReduce(part.handle, 'sum');
    if (!accumulate) return undefined;
    native.add(target.handle, target.handle, part.handle);
    part.dispose();
    return undefined;
  }
  const grad = gradient(input.shape, input.dtype, input.device);
  write(grad.handle, false);
  return grad;
}

/**
 * The gradient of input `i` (x) of an op whose kernel can add to it: `write(dx, earlier)` writes the op's own part, plus `earlier`
 * where it is given, which is what came from other uses of x and may be `dx` itself.
 */
export function addingGrad(
  x: Tensor,
  i: number,
  take: TakeGrad,
  write: (dx: Tensor, earlier: Tensor | undefined) => void,
): Tensor {
  const earlier = fuses(x.device, 'sums') ? take(i) : undefined;
  const isFit = earlier?.dtype === x.dtype;
  const inPlace = earlier && isFit && isSole(earlier);
  const dx = inPlace ? earlier : gradient(x.shape, x.dtype, x.device);
  write(dx, isFit ? earlier : undefined);
  if (!earlier || inPlace) return dx;
  if (!isFit) return sumInto(earlier, dx);
  earlier.dispose();
  return dx;
}

/** True when a graph is being recorded and one of the inputs wants a gradient. */
export function wantsGrad(...inputs: (Tensor | undefined)[]): boolean {
  return isGradEnabled() && inputs.some((input) => input?.requiresGrad);
}

/**
 * Makes `out` the result of an op. `save` is called only when a graph is recorded; it keeps what backward needs and
 * returns the backward function, which gives one gradient for each input (undefined where `needs[i]` is false); it may take what
 * has reached an input already, and give the sum. `saved`: what was kept already.
 */
export function record(
  name: string,
  out: Tensor,
  inputs: readonly (Tensor | undefined)[],
  save: (saved: Saved, needs: readonly boolean[]) => (gradOut: Tensor, take: TakeGrad) => InputGrads,
  saved: Saved = new Saved(),
): Tensor {
  if (!isGradEnabled() || !inputs.some((input) => input?.requiresGrad)) return out;
  const needs = inputs.map((input) => input?.requiresGrad ?? false);
  const node: GradNode = {
    name,
    sequence: nextSequence(),
    inputs: inputs.map((input) => (input?.requiresGrad ? input : undefined)),
    backward: save(saved, needs),
    release: () => saved.release(),
    done: false,
  };
  out.requiresGrad = true;
  out.gradFn = node;
  return out;
}

/** @internal Whether nothing but this handle shares the storage. */
export function isSole(tensor: Tensor): boolean {
  return native.tensorUseCount(tensor.handle) === 1;
}
