// What a causal language model is fed: ids, positions and sequence boundaries as device tensors, checked on the host first.
import { computeDevice } from '../tensor/streams.ts';
import { Tensor } from '../tensor/tensor.ts';

/** Token ids or labels: an int64 tensor (batch, length), rows of numbers, or one flat row (with cuSeqlens). */
export type TokenInput = Tensor | readonly (readonly number[])[] | Int32Array | BigInt64Array;

export interface ForwardInput {
  /** Ids (batch, length). */
  inputIds: TokenInput;
  /** Labels of the same shape, −100 ignored; shifted by the model. */
  labels?: TokenInput | undefined;
  /** Labels in the whole batch, of which this may be a part (accumulation): the loss becomes Σ / count. */
  numItemsInBatch?: number | undefined;
  /** Also return logits (batch, length, vocab), which costs their memory. */
  returnLogits?: boolean | undefined;
  /** Positions for the rotary embedding; default 0, 1, … in each sequence. */
  positionIds?: TokenInput | undefined;
  /** Row offsets of packed sequences (sequences + 1), when inputIds is one packed row. Attention never crosses them. */
  cuSeqlens?: Int32Array | readonly number[] | undefined;
}

/** Host side of a batch: flat rows and the offsets of its sequences. */
export interface HostBatch {
  ids: Int32Array;
  /** Shifted: labels[i] is what row i must predict; absent without labels. */
  labels?: Int32Array | undefined;
  positions: Int32Array;
  cuSeqlens: Int32Array;
  batch: number;
  length: number;
  /** Rows at the end that belong to no sequence of the input. */
  padding: number;
}

/** int32 from int64 by the low words, since a BigInt for each token costs more than the rest. Too large: the largest int32. */
function narrowed(values: BigInt64Array): Int32Array {
  const words = new Int32Array(values.buffer, values.byteOffset, values.length * 2); // little-endian
  const out = new Int32Array(values.length);
  for (let i = 0; i < out.length; i++) {
    const [low, high] = [words[2 * i]!, words[2 * i + 1]!];
    out[i] = high === low >> 31 ? low : 0x7fffffff;
  }
  return out;
}

function flatten(what: string, input: TokenInput): { values: Int32Array; batch: number; length: number } {
  if (input instanceof Int32Array) return { values: input, batch: 1, length: input.length };
  if (input instanceof BigInt64Array) return { values: narrowed(input), batch: 1, length: input.length };
  if (input instanceof Tensor) {
    if (input.dtype !== 'int64' && input.dtype !== 'int32')
      throw new TypeError(`${what} must be int64 but is ${input.dtype}`);
    if (input.shape.length > 2)
      throw new RangeError(`${what} must have shape (batch, length) but has [${input.shape}]`);
    const host = input.hostValues ?? input.dataSync();
    const values = host instanceof BigInt64Array ? narrowed(host) : Int32Array.from(host, Number);
    const length = input.size(-1);
    return { values, batch: values.length / length, length };
  }
  const length = input[0]?.length ?? 0;
  const values = new Int32Array(input.length * length);
  input.forEach((row, i) => {
    if (row.length !== length) {
      throw new RangeError(
        `${what}: row ${i} has ${row.length} tokens but row 0 has ${length}; pad the rows, or pack them and give cuSeqlens`,
      );
    }
    values.set(row, i * length);
  });
  return { values, batch: input.length, length };
}

/**
 * Checks a batch and lays it out. Throws a RangeError that names the first id outside the vocabulary. Rows are filled up to
 * a multiple of `rowMultiple` by a sequence of its own, without labels.
 */
export function layOut(input: ForwardInput, vocabSize: number, rowMultiple = 1): HostBatch {
  const { values: ids, batch, length } = flatten('inputIds', input.inputIds);
  if (ids.length === 0) throw new RangeError('inputIds is empty');
  const bad = ids.findIndex((id) => !(id >= 0 && id < vocabSize));
  if (bad >= 0)
    throw new RangeError(`inputIds: id ${ids[bad]} at index ${bad} is outside the vocabulary of ${vocabSize}`);

  let cuSeqlens: Int32Array;
  if (input.cuSeqlens) {
    cuSeqlens = Int32Array.from(input.cuSeqlens);
    const rising = cuSeqlens.every((offset, i) => i === 0 || offset > cuSeqlens[i - 1]!);
    if (cuSeqlens[0] !== 0 || cuSeqlens.at(-1) !== ids.length || !rising) {
      throw new RangeError(
        `cuSeqlens must rise from 0 to the ${ids.length} tokens of the batch but is [${[...cuSeqlens.slice(0, 8)]}${cuSeqlens.length > 8 ? ', …' : ''}]`,
      );
    }
  } else cuSeqlens = Int32Array.from({ length: batch + 1 }, (_, i) => i * length);

  let positions: Int32Array;
  if (input.positionIds) {
    positions = flatten('positionIds', input.positionIds).values;
    if (positions.length !== ids.length)
      throw new RangeError(`positionIds has ${positions.length} entries but inputIds has ${ids.length}`);
  } else {
    positions = new Int32Array(ids.length);
    for (let s = 0; s + 1 < cuSeqlens.length; s++) {
      for (let i = cuSeqlens[s]!, p = 0; i < cuSeqlens[s + 1]!; i++) positions[i] = p++;
    }
  }

  const labels = input.labels
    ? shift(flatten('labels', input.labels).values, ids.length, cuSeqlens, vocabSize)
    : undefined;
  const padding = (rowMultiple - (ids.length % rowMultiple)) % rowMultiple;
  if (padding === 0) return { batch, length, ids, labels, positions, cuSeqlens, padding };
  const rows = ids.length + padding;
  return {
    batch,
    length,
    ids: extended(ids, rows, () => 0),
    labels: labels && extended(labels, rows, () => -100),
    positions: extended(positions, rows, (i) => i),
    cuSeqlens: Int32Array.of(...cuSeqlens, rows),
    padding,
  };
}

function extended(values: Int32Array, length: number, fill: (i: number) => number): Int32Array {
  const out = new Int32Array(length);
  out.set(values);
  for (let i = values.length; i < length; i++) out[i] = fill(i - values.length);
  return out;
}

function shift(labels: Int32Array, rows: number, cuSeqlens: Int32Array, vocabSize: number): Int32Array {
  if (labels.length !== rows) throw new RangeError(`labels has ${labels.length} entries but inputIds has ${rows}`);
  const shifted = new Int32Array(rows).fill(-100);
  for (let s = 0; s + 1 < cuSeqlens.length; s++) {
    for (let i = cuSeqlens[s]! + 1; i < cuSeqlens[s + 1]!; i++) {
      const label = labels[i]!;
      if (label === -100) continue;
      if (!(label >= 0 && label < vocabSize)) {
        throw new RangeError(
          `labels: ${label} at index ${i} is neither -100 nor an id of the vocabulary of ${vocabSize}`,
        );
      }
      shifted[i - 1] = label;
    }
  }
  return shifted;
}

/** int64 on the device from int32 on the host. */
export function int64Tensor(values: Int32Array): Tensor {
  const wide = new Int32Array(values.length * 2); // little-endian pairs of low and high word
  for (let i = 0; i < values.length; i++) {
    wide[2 * i] = values[i]!;
    wide[2 * i + 1] = values[i]! >> 31;
  }
  return Tensor.from(new BigInt64Array(wide.buffer), [values.length], {
    dtype: 'int64',
    device: computeDevice(),
  });
}
