// NF4 against bitsandbytes: codes, scales and what they stand for, bit for bit.
import { beforeAll, describe, expect, it } from 'vitest';
import { native } from '../../src/native.ts';
import { QuantizedLayout, type QuantizedStorage } from '../../src/tensor/quantized.ts';
import { Tensor } from '../../src/tensor/tensor.ts';
import { referenceTensors } from './cases.ts';

let reference: Map<string, Tensor>;
beforeAll(async () => {
  reference = await referenceTensors('nf4');
});

const bits = (tensor: Tensor): Uint8Array => new Uint8Array(tensor.dataSync().buffer);
const wanted = (name: string): Uint8Array => bits(reference.get(name)!);

function quantised(
  name: string,
  storage: QuantizedStorage,
): { bytes: Uint8Array; layout: QuantizedLayout; again: Uint8Array } {
  const weight = reference.get(`${name}.weight`)!;
  const layout = QuantizedLayout.whole(storage, [weight.size(0), weight.size(1)]);
  const q = Tensor.empty([layout.bytes], 'uint8');
  native.quantizeWeight(q.handle, weight.handle, ...layout.operands);
  const y = Tensor.empty(weight.shape);
  native.dequantizeWeight(y.handle, q.handle, ...layout.operands);
  return { bytes: bits(q), layout, again: bits(y) };
}

describe.each(['even', 'odd'])('the %s shape', (name) => {
  it('has the codes, absmax and values of bitsandbytes', () => {
    const { bytes, layout, again } = quantised(name, 'nf4');
    const packed = wanted(`${name}.packed`);
    const absmax = wanted(`${name}.absmax`);
    expect(bytes.subarray(0, packed.length)).toEqual(packed);
    expect(bytes.subarray(layout.scalesAt, layout.scalesAt + absmax.length)).toEqual(absmax);
    expect(again).toEqual(wanted(`${name}.dequantised`));
  });
});

it('stores scales in 8 bits as bitsandbytes does', () => {
  const { bytes, layout, again } = quantised('even', 'nf4-double');
  const at = (from: number, name: string): void => {
    const want = wanted(`even.double.${name}`);
    expect(bytes.slice(from, from + want.length), name).toEqual(want);
  };
  expect(bytes.subarray(0, 12288)).toEqual(wanted('even.packed'));
  at(layout.offsetAt, 'offset');
  at(layout.groupsAt, 'nested_absmax');
  at(layout.scalesAt, 'absmax');
  expect(again).toEqual(wanted('even.double.dequantised'));
});
