// What an op is called with, described once and made on any device: inputs by their values, outputs by their size. The order is
// that of the op's fields, as in native calls.
import type { DType, FloatDType } from '../../tensor/dtype.ts';

export type Values = Float32Array | Int32Array | BigInt64Array | Uint8Array;

export interface Input {
  role: 'in';
  dtype: DType;
  values: Values;
}

export interface Output {
  role: 'out';
  name: string;
  dtype: DType;
  numel: number;
  /** What is there before; without them, poison: an element that nobody writes is seen. */
  initial?: Values | undefined;
}

/** `undefined`: an optional operand that is absent. */
export type Operand = Input | Output | undefined | number | boolean | bigint | string | Operand[] | boolean[];

/** One call of an op with fresh values. */
export interface OpCase {
  /** Shape and flags, for a person who looks for the failure. */
  label: string;
  operands: Operand[];
  /** Moves, casts and random numbers have the reference's bits. */
  exact?: boolean | undefined;
}

export function input(dtype: DType, values: Values): Input {
  return { role: 'in', dtype, values };
}

export function output(name: string, dtype: DType, numel: number, initial?: Values): Output {
  return { role: 'out', name, dtype, numel, initial };
}

export function isTensor(operand: Operand): operand is Input | Output {
  return typeof operand === 'object' && !Array.isArray(operand);
}

export function isHalf(dtype: DType): dtype is 'bfloat16' | 'float16' {
  return dtype === 'bfloat16' || dtype === 'float16';
}

export const floatDTypes: readonly FloatDType[] = ['float32', 'bfloat16', 'float16'];
