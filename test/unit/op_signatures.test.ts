// What native.ts says of the ops is what their structs in cpp/ops say: names, order and types of the operands.
import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { native } from '../../src/native.ts';
import { Tensor } from '../../src/tensor/tensor.ts';

const types: Record<string, string> = {
  tensor: 'H',
  'tensor?': 'O',
  'tensor[]': 'H[]',
  'tensor?[]': 'O[]',
  integer: 'N',
  number: 'N',
  boolean: 'boolean',
  'boolean[]': 'boolean[]',
  bigint: 'bigint',
  string: 'string',
};

it('the interface NativeOps has the operands of every op', () => {
  const source = readFileSync(new URL('../../src/native_ops.ts', import.meta.url), 'utf8');
  const body = source.match(/^export interface NativeOps \{\n(.*?)^\}/ms)![1]!.replaceAll(/\/\*\*.*?\*\//gs, '');
  const written = [...body.matchAll(/^ {2}(\w+)\((.*?)\): (\w+.*?);$/gms)]
    .map(
      ([, name, operands, result]) =>
        `${name}(${operands!.trim().replace(/,$/, '').split(/,\s*/).join(', ')}): ${result}`,
    )
    .filter((line) => !/^op(Names|Signatures)\(/.test(line));
  const meant = native.opSignatures().map(({ name, operands }) => {
    const list = operands.map(([operand, type]) => `${operand}: ${types[type]}`);
    return `${name}(${list.join(', ')}): void`;
  });
  expect(written).toEqual(meant);
});

describe('an argument that is not as wanted', () => {
  const t = Tensor.zeros([4]).handle;
  const gone = Tensor.zeros([4]);
  const goneHandle = gone.handle;
  gone.dispose();
  const call = (name: string, ...args: unknown[]): unknown =>
    (native as unknown as Record<string, (...args: unknown[]) => void>)[name]!(...args);

  it.each([
    [
      'a missing tensor',
      'rmsNormForward',
      [t, t],
      '[rms_norm_forward] x (argument 3) must be a tensor but is undefined',
    ],
    ['NONE', 'add', [t, t, 0], '[add] b (argument 3) must be a tensor but is 0'],
    ['no tensor', 'copy', [t, 'x'], '[copy] src (argument 2) must be a tensor but is a string'],
    [
      'no optional tensor',
      'scale',
      [t, t, {}, 1, false],
      '[scale] by (argument 3) must be a tensor or NONE but is an object',
    ],
    [
      'an absent matrix',
      'expertsForward',
      [t, 0, 0, t, t, t, t, [t, 0]],
      '[experts_forward] w1 (argument 8) must be an array of tensors but has 0',
    ],
    [
      'a fraction',
      'splitQkv',
      [t, t, t, t, 1.5, 1, 1],
      '[split_qkv] rows (argument 5) must be a whole number but is 1.5',
    ],
    ['a number as a flag', 'sumSquares', [t, t, 1], '[sum_squares] accumulate (argument 3) must be a boolean but is 1'],
    [
      'an argument too many',
      'swigluForward',
      [t, t, t, t],
      '[swiglu_forward] takes 3 arguments (y, gate, up) but got 4',
    ],
    ['one of another function', 'tensorView', [t, 'x', 1], '[tensorView] argument 2 must be a number but is a string'],
  ])('%s', (_, name, args, message) => {
    expect(() => call(name, ...args)).toThrow(expect.objectContaining({ code: 'ERR_ARGUMENT', message }));
  });

  it('a disposed tensor', () => {
    expect(() => native.add(t, t, goneHandle)).toThrow(
      expect.objectContaining({
        code: 'ERR_HANDLE',
        message: '[add] b (argument 3): this tensor was disposed, or the handle is not a tensor',
      }),
    );
  });
});
