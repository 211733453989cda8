// Ops of a program's own: a forward and its backward, from ops that exist or from kernels on host memory (host_op.ts).
import { native } from '../native.ts';
import { type DType, isFloating } from '../tensor/dtype.ts';
import { noGrad } from '../tensor/grad_mode.ts';
import type { InputGrads } from '../tensor/node.ts';
import { scope, track } from '../tensor/scope.ts';
import { type Device, type Shape, Tensor } from '../tensor/tensor.ts';
import { type HostOpDefinition, throughHost } from './host_op.ts';
import { hasGradSink, record, Saved, wantsGrad, writeGrad } from './record.ts';

/** What forward hands to backward: one for each call of the op. */
export interface OpContext {
  /** For each argument, whether its gradient is wanted. All false where no graph is recorded. */
  readonly needs: readonly boolean[];
  /** What save() was given, in that order. */
  readonly saved: readonly Tensor[];
  /** What is not a tensor. */
  readonly values: Record<string, unknown>;
  /** Keeps tensors for backward: arguments, the result, or what forward made. Nothing where no graph is recorded. */
  save(...tensors: Tensor[]): void;
}

export interface OpDefinition<Args extends readonly unknown[]> {
  /** As errors and graphs have it. */
  readonly name: string;
  /**
   * The result, from arguments of which some are tensors; others get no gradient. Records no graph, and what it makes is freed
   * when it returns. A result of an integer dtype requires no gradient.
   */
  forward(ctx: OpContext, ...args: Args): Tensor;
  /**
   * One gradient for each argument, of its shape, dtype and device: undefined where there is none, and ignored where
   * `ctx.needs` says so. Without it the op has no gradient, and backward through it is an error.
   */
  backward?(ctx: OpContext, gradOut: Tensor): readonly (Tensor | undefined)[];
}

/**
 * An op that takes part in autograd as those of the package do, after torch.autograd.Function. Its arguments are those of
 * `forward` behind `ctx`, or of `hostForward` behind `kernel`. Errors name the op: a forward without a tensor, gradients of
 * another number, shape, dtype or device.
 */
export function defineOp<Args extends readonly unknown[]>(definition: OpDefinition<Args>): (...args: Args) => Tensor;
export function defineOp<Args extends readonly unknown[]>(
  definition: HostOpDefinition<Args>,
): (...args: Args) => Tensor;
export function defineOp<Args extends readonly unknown[]>(
  definition: OpDefinition<Args> | HostOpDefinition<Args>,
): (...args: Args) => Tensor {
  const op = 'hostForward' in definition ? throughHost(definition) : definition;
  return (...args) => apply(op, args);
}

class Context implements OpContext {
  readonly values: Record<string, unknown> = {};
  readonly saved: Tensor[] = [];
  readonly own: Saved = new Saved();
  readonly needs: readonly boolean[];
  private readonly recording: boolean;

  constructor(needs: readonly boolean[], recording: boolean) {
    this.needs = needs;
    this.recording = recording;
  }

  save(...tensors: Tensor[]): void {
    if (this.recording) this.saved.push(...tensors.map((tensor) => this.own.keep(tensor)));
  }
}

function apply<Args extends readonly unknown[]>(op: OpDefinition<Args>, args: Args): Tensor {
  const inputs = args.map((arg) => (arg instanceof Tensor ? arg : undefined));
  const recording = wantsGrad(...inputs);
  const wanted = inputs.map((input) => (recording && input?.requiresGrad ? wantedGradient(input) : undefined));
  const needs = wanted.map((want) => want !== undefined);
  const ctx = new Context(needs, recording);
  let out: Tensor;
  try {
    out = noGrad(() => scope(() => asTensor(op.name, op.forward(ctx, ...args)).detach()));
  } catch (error) {
    ctx.own.release();
    throw error;
  }
  track(out);
  if (recording && isFloating(out.dtype)) {
    return record(op.name, out, inputs, () => (gradOut) => gradients(op, ctx, wanted, gradOut), ctx.own);
  }
  ctx.own.release();
  return out;
}

interface Wanted {
  input: Tensor;
  shape: Shape;
  /** Of the values in forward: FSDP changes that of its parameters. */
  dtype: DType;
  device: Device;
}

function wantedGradient(input: Tensor): Wanted {
  return { input, shape: input.shape, dtype: input.dtype, device: input.device };
}

function gradients<Args extends readonly unknown[]>(
  op: OpDefinition<Args>,
  ctx: Context,
  wanted: readonly (Wanted | undefined)[],
  gradOut: Tensor,
): InputGrads {
  if (!op.backward) throw new Error(`[${op.name}] has no backward`);
  return scope(() => {
    const grads: unknown = op.backward!(ctx, gradOut);
    if (!Array.isArray(grads) || grads.length !== wanted.length) {
      throw new TypeError(
        `[${op.name}] backward must return an array of ${wanted.length} gradients, one for each argument (undefined where ` +
          `there is none), but returned ${Array.isArray(grads) ? `one of ${grads.length}` : describe(grads)}`,
      );
    }
    // All are checked before one is written.
    for (const [i, want] of wanted.entries()) if (want && grads[i] !== undefined) check(op.name, i, grads[i], want);
    return wanted.map((want, i) => want && grads[i] && handOver(want.input, grads[i]));
  });
}

function check(op: string, i: number, grad: unknown, want: Wanted): void {
  const what = `[${op}] the gradient of argument ${i + 1}`;
  if (!(grad instanceof Tensor)) throw new TypeError(`${what} must be a tensor but is ${describe(grad)}`);
  if (grad.shape.length !== want.shape.length || grad.shape.some((size, dim) => size !== want.shape[dim])) {
    throw new RangeError(`${what} must have shape [${want.shape}] but has [${grad.shape}]`);
  }
  if (grad.dtype !== want.dtype) throw new TypeError(`${what} must be ${want.dtype} but is ${grad.dtype}`);
  if (grad.device !== want.device) throw new TypeError(`${what} must be on ${want.device} but is on ${grad.device}`);
}

/** For the engine: a handle of its own, since the scope frees what backward made. */
function handOver(input: Tensor, grad: Tensor): Tensor | undefined {
  if (!hasGradSink(input)) return grad.detach();
  return writeGrad(input, (target, accumulate) => {
    if (accumulate) native.add(target, target, grad.handle);
    else native.copy(target, grad.handle);
  });
}

function asTensor(op: string, result: unknown): Tensor {
  if (result instanceof Tensor) return result;
  throw new TypeError(`[${op}] forward must return a tensor but returned ${describe(result)}`);
}

function describe(value: unknown): string {
  if (value instanceof Promise) return 'a promise';
  if (value instanceof Tensor) return 'a tensor';
  if (Array.isArray(value)) return 'an array';
  return value === null || value === undefined ? String(value) : `a value of type ${typeof value}`;
}
