// Ops whose kernels are JavaScript on typed arrays. A kernel needs values, so it waits for what was enqueued before it; those
// of tensors on a device go through host memory.
import { isFloating } from '../tensor/dtype.ts';
import { numelOf, type Shape, Tensor, type TensorData } from '../tensor/tensor.ts';
import type { OpDefinition } from './define_op.ts';

/** Arguments as kernels get them: tensors are the values of Tensor.dataSync, in row-major order. */
export type HostArguments<Args extends readonly unknown[]> = {
  [I in keyof Args]: Args[I] extends Tensor ? TensorData : Args[I];
};

export interface HostForward {
  /** The shape of each argument that is a tensor. */
  readonly shapes: readonly (Shape | undefined)[];
  /** To be filled: zeros of the result's size. */
  readonly output: Float32Array;
}

export interface HostBackward {
  readonly shapes: readonly (Shape | undefined)[];
  readonly gradOut: Float32Array;
  /** To be filled: zeros for each argument whose gradient is wanted, undefined for the others. */
  readonly grads: readonly (Float32Array | undefined)[];
}

export interface HostOpDefinition<Args extends readonly unknown[]> {
  readonly name: string;
  /** The shape of the result, from those of the arguments. Default: that of the first tensor. */
  outputShape?(shapes: readonly (Shape | undefined)[]): Shape;
  /**
   * Fills `kernel.output`, which becomes a tensor of the dtype and device of the first floating tensor: 16-bit dtypes are
   * float32 in kernels.
   */
  hostForward(kernel: HostForward, ...args: HostArguments<Args>): void;
  /** Fills `kernel.grads`, from the values that forward had. */
  hostBackward?(kernel: HostBackward, ...args: HostArguments<Args>): void;
}

/** @internal The same op, from tensors to tensors. */
export function throughHost<Args extends readonly unknown[]>(host: HostOpDefinition<Args>): OpDefinition<Args> {
  return {
    name: host.name,
    forward(ctx, ...args) {
      const tensors = args.filter((arg) => arg instanceof Tensor);
      const like = tensors.find((tensor) => isFloating(tensor.dtype));
      if (!like) throw new TypeError(`[${host.name}] wants a floating tensor among its arguments`);
      const shapes = shapesOf(args);
      const shape = host.outputShape?.(shapes) ?? tensors[0]!.shape;
      const output = new Float32Array(numelOf(shape));
      host.hostForward({ shapes, output }, ...valuesOf(args));
      ctx.save(...tensors);
      ctx.values.args = args.map((arg) => (arg instanceof Tensor ? ctx.saved[tensors.indexOf(arg)] : arg));
      return Tensor.from(output, shape, { dtype: like.dtype, device: like.device });
    },
    backward(ctx, gradOut) {
      if (!host.hostBackward) throw new Error(`[${host.name}] has no hostBackward`);
      const args = ctx.values.args as Args;
      const grads = args.map((arg, i) => (ctx.needs[i] ? new Float32Array((arg as Tensor).numel) : undefined));
      const kernel = { shapes: shapesOf(args), gradOut: gradOut.dataSync() as Float32Array, grads };
      host.hostBackward(kernel, ...valuesOf(args));
      return grads.map((grad, i) => {
        if (!grad) return undefined;
        const { shape, dtype, device } = args[i] as Tensor;
        return Tensor.from(grad, shape, { dtype, device });
      });
    },
  };
}

function shapesOf(args: readonly unknown[]): (Shape | undefined)[] {
  return args.map((arg) => (arg instanceof Tensor ? arg.shape : undefined));
}

function valuesOf<Args extends readonly unknown[]>(args: Args): HostArguments<Args> {
  return args.map((arg) => (arg instanceof Tensor ? arg.dataSync() : arg)) as unknown as HostArguments<Args>;
}
