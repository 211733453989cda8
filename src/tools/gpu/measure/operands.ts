// Operands on the device for measurements: random, since zeros flatter; freed together.
import { type Handle, native } from '../../../native.ts';
import { type DType, dtypeNumber } from '../../../tensor/dtype.ts';

const cuda = 1;

export class Operands {
  readonly #handles: Handle[] = [];
  readonly #seed: bigint;
  #count = 0;

  constructor(seed: number) {
    this.#seed = BigInt(seed);
  }

  empty(numel: number, dtype: DType = 'bfloat16'): Handle {
    const handle = native.tensorEmpty(numel, dtypeNumber(dtype), 0, cuda);
    this.#handles.push(handle);
    return handle;
  }

  normal(numel: number, dtype: DType = 'bfloat16', std = 1): Handle {
    const handle = this.empty(numel, dtype);
    native.randomFill(handle, this.#seed, `measured ${this.#count++}`, 0, true, 0, std);
    return handle;
  }

  uniform(numel: number, dtype: DType = 'float32', from = 0, to = 1): Handle {
    const handle = this.empty(numel, dtype);
    native.randomFill(handle, this.#seed, `measured ${this.#count++}`, 0, false, from, to);
    return handle;
  }

  int64(numel: number, value: (i: number) => number): Handle {
    const handle = this.empty(numel, 'int64');
    native.tensorWrite(
      handle,
      BigInt64Array.from({ length: numel }, (_, i) => BigInt(value(i))),
    );
    return handle;
  }

  int32(values: number[]): Handle {
    const handle = this.empty(values.length, 'int32');
    native.tensorWrite(handle, Int32Array.from(values));
    return handle;
  }

  release(): void {
    for (const handle of this.#handles.splice(0)) native.tensorRelease(handle);
    native.memoryTrim();
  }
}

/** Runs `measure` with operands that are freed afterwards, whatever happens. */
export function withOperands<T>(seed: number, measure: (operands: Operands) => T): T {
  const operands = new Operands(seed);
  try {
    return measure(operands);
  } finally {
    operands.release();
  }
}
