// One op on the device against the same op on the CPU. The reference of 16-bit operands is computed in float32 from the rounded
// values. Outputs are poisoned before, and so is the memory around them; every second call gets tensors whose addresses are
// multiples of their element's size and no more.
import { type Handle, native } from '../../native.ts';
import { type DType, dtypeNumber, dtypeSize } from '../../tensor/dtype.ts';
import { type Input, isHalf, isTensor, type OpCase, type Operand, type Output, type Values } from './operand.ts';

/** Greatest allowed ‖got − wanted‖ / ‖wanted‖ of an output, by the op's narrowest dtype. */
export const tolerances: Record<'float32' | 'bfloat16' | 'float16', number> = {
  float32: 1e-5,
  bfloat16: 1e-2,
  float16: 1e-2,
};

export interface CaseResult {
  dtype: 'float32' | 'bfloat16' | 'float16';
  /** The greatest of all outputs. */
  error: number;
  /** What is wrong; undefined when nothing is. */
  failure?: string | undefined;
}

const poison = Number.NaN;
const integerPoison = -0x5a5a5a5;
const guard = 64;
const cpu = 0;
const cuda = 1;

/** The native function of an op: `linear_forward` → linearForward. */
function nativeOp(op: string): (...operands: unknown[]) => void {
  const name = op.replace(/_(\w)/g, (_, letter: string) => letter.toUpperCase());
  const found = (native as unknown as Record<string, unknown>)[name];
  if (typeof found !== 'function') throw new Error(`the addon has no function ${name} for op ${op}`);
  return found as (...operands: unknown[]) => void;
}

function poisonOf(dtype: DType): number {
  return dtype === 'int64' || dtype === 'int32' ? integerPoison : dtype === 'uint8' ? 0xa5 : poison;
}

function write(handle: Handle, dtype: DType, values: Values, device: number): void {
  if (!isHalf(dtype)) {
    native.tensorWrite(handle, values);
    return;
  }
  const wide = native.tensorEmpty(values.length, dtypeNumber('float32'), 0, device);
  native.tensorWrite(wide, values);
  native.copy(handle, wide);
  native.tensorRelease(wide);
}

const arrays: Partial<Record<DType, typeof BigInt64Array | typeof Int32Array | typeof Uint8Array>> = {
  int64: BigInt64Array,
  int32: Int32Array,
  uint8: Uint8Array,
};

function read(handle: Handle, dtype: DType, numel: number, device: number): Values {
  const out = new (arrays[dtype] ?? Float32Array)(numel);
  if (!isHalf(dtype)) {
    native.tensorRead(handle, out);
    return out;
  }
  const wide = native.tensorEmpty(numel, dtypeNumber('float32'), 0, device);
  native.copy(wide, handle);
  native.tensorRead(wide, out);
  native.tensorRelease(wide);
  return out;
}

/** Tensors of one call, each within a larger one whose rest is poison. */
class Call {
  readonly device: number;
  readonly #shift: number;
  readonly #wide: boolean;
  readonly #handles: Handle[] = [];
  readonly #made = new Map<Operand, Handle>(); // an operand that is there twice: an op in place
  readonly #outputs: { output: Output; dtype: DType; whole: Handle; view: Handle }[] = [];

  /** `wide`: float32 takes the place of 16-bit dtypes, with their values. `shift`: elements from an aligned address. */
  constructor(device: number, shift: number, wide: boolean) {
    this.device = device;
    this.#shift = shift;
    this.#wide = wide;
  }

  make(operand: Operand): unknown {
    if (Array.isArray(operand)) return operand.map((each) => this.make(each));
    if (operand === undefined) return 0;
    if (!isTensor(operand)) return operand;
    const handle = this.#made.get(operand) ?? this.#tensor(operand);
    this.#made.set(operand, handle);
    return handle;
  }

  #keep(handle: Handle): Handle {
    this.#handles.push(handle);
    return handle;
  }

  #tensor(operand: Input | Output): Handle {
    const { dtype } = operand;
    const values = operand.role === 'in' ? operand.values : operand.initial;
    const numel = operand.role === 'in' ? operand.values.length : operand.numel;
    const stored: DType = this.#wide && isHalf(dtype) ? 'float32' : dtype;
    const before = guard + this.#shift;
    const whole = this.#keep(native.tensorEmpty(before + numel + guard, dtypeNumber(stored), 0, this.device));
    native.fill(whole, poisonOf(stored));
    const view = this.#keep(native.tensorView(whole, before, numel));
    if (values && numel > 0) {
      const rounded = stored === dtype ? values : roundTo(dtype, values as Float32Array);
      write(view, stored, rounded, this.device);
    }
    if (operand.role === 'out') this.#outputs.push({ output: operand, dtype: stored, whole, view });
    return view;
  }

  results(): { output: Output; values: Values; trespass: boolean }[] {
    return this.#outputs.map(({ output, dtype, whole }) => {
      const before = guard + this.#shift;
      const all = read(whole, dtype, before + output.numel + guard, this.device);
      const values = all.slice(before, before + output.numel);
      const wanted = poisonOf(dtype);
      const isPoison = (value: number | bigint): boolean =>
        Object.is(Number(value), wanted) || Number(value) === wanted;
      const around = [...all.slice(0, before), ...all.slice(before + output.numel)];
      return { output, values, trespass: !around.every(isPoison) };
    });
  }

  release(): void {
    for (const handle of this.#handles.splice(0)) native.tensorRelease(handle);
  }
}

function roundTo(dtype: DType, values: Float32Array): Float32Array {
  const narrow = native.tensorEmpty(values.length, dtypeNumber(dtype), 0);
  write(narrow, dtype, values, cpu);
  const out = read(narrow, dtype, values.length, cpu) as Float32Array;
  native.tensorRelease(narrow);
  return out;
}

/** The outputs of the op on the CPU, in float32 where they are floating: for ops whose inputs another op makes. */
export function reference(op: string, operands: Operand[]): Values[] {
  const call = new Call(cpu, 0, true);
  try {
    nativeOp(op)(...operands.map((operand) => call.make(operand)));
    return call.results().map(({ values }) => values);
  } finally {
    call.release();
  }
}

function narrowest(operands: readonly Operand[]): CaseResult['dtype'] {
  let found: CaseResult['dtype'] = 'float32';
  for (const operand of operands) {
    if (Array.isArray(operand)) {
      const inner = narrowest(operand);
      if (inner !== 'float32') found = inner;
    } else if (isTensor(operand) && isHalf(operand.dtype)) found = operand.dtype;
  }
  return found;
}

/** ‖got − wanted‖ / ‖wanted‖; NaN where either has one that the other has not. */
export function relativeError(got: Values, wanted: Values): number {
  let difference = 0;
  let norm = 0;
  for (let i = 0; i < wanted.length; i++) {
    const [g, w] = [Number(got[i]), Number(wanted[i])];
    if (g === w && !Number.isFinite(w)) continue; // −∞ of both
    difference += (g - w) ** 2;
    norm += w ** 2;
  }
  return difference === 0 ? 0 : Math.sqrt(difference / norm);
}

function firstDifference(got: Values, wanted: Values): string {
  let worst = 0;
  let most = -1;
  let count = 0;
  for (let i = 0; i < wanted.length; i++) {
    if (Object.is(got[i], wanted[i])) continue;
    count++;
    const distance = Math.abs(Number(got[i]) - Number(wanted[i]));
    if (!(distance <= most)) {
      worst = i;
      most = Number.isNaN(distance) ? Number.POSITIVE_INFINITY : distance;
    }
  }
  return `${count} of ${wanted.length} differ, most at ${worst}: ${got[worst]} should be ${wanted[worst]}`;
}

/** Runs the case on both devices. Throws what the ops throw; ERR_DEVICE and ERR_CUDA mean that the device is lost. */
export function checkCase(op: string, { label, operands, exact = false }: OpCase, shift: number): CaseResult {
  const dtype = narrowest(operands);
  const limit = exact ? 0 : tolerances[dtype];
  const call = nativeOp(op);
  const there = new Call(cuda, shift, false);
  const here = new Call(cpu, 0, !exact);
  const result: CaseResult = { dtype, error: 0 };
  try {
    call(...operands.map((operand) => there.make(operand)));
    call(...operands.map((operand) => here.make(operand)));
    const wanted = here.results();
    for (const [i, { output, values, trespass }] of there.results().entries()) {
      const place = `${label}, ${dtype}, ${output.name}${shift ? `, ${shift} elements off alignment` : ''}`;
      const isInteger = dtypeSize(output.dtype) > 0 && !output.dtype.includes('float');
      const error = relativeError(values, wanted[i]!.values);
      if (!(error <= result.error)) result.error = error;
      if (trespass) result.failure ??= `${place}: memory beside the output was written`;
      else if (!(error <= (isInteger ? 0 : limit)))
        result.failure ??= `${place}: error ${error.toExponential(2)}, at most ${isInteger ? 0 : limit}; ${firstDifference(values, wanted[i]!.values)}`;
    }
  } finally {
    there.release();
    here.release();
  }
  return result;
}
