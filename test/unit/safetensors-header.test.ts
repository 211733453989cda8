// Headers of safetensors files: what is read, and what is refused with the file's name and the problem.
import { describe, expect, test } from 'vitest';
import {
  headerLength,
  maxHeaderBytes,
  parseHeader,
  planSafetensors,
  usableDType,
} from '../../src/checkpoint/safetensors-header.ts';
import { FileFormatError } from '../../src/core/json.ts';

const encode = (header: string | object) =>
  new TextEncoder().encode(typeof header === 'string' ? header : JSON.stringify(header));

/** Parses a header before `dataBytes` bytes of data. */
function parse(header: string | object, dataBytes: number) {
  const bytes = encode(header);
  return parseHeader(bytes, 8 + bytes.byteLength + dataBytes, 'x.safetensors');
}

const tensor = (dtype: unknown, shape: unknown, data_offsets: unknown) => ({ dtype, shape, data_offsets });

describe('good headers', () => {
  test('offsets are from the start of the file, in the order of the bytes', () => {
    const header = {
      __metadata__: { format: 'pt' },
      b: tensor('F32', [2, 3], [4, 28]),
      a: tensor('BF16', [2], [0, 4]),
    };
    const { tensors, metadata } = parse(header, 28);
    const start = 8 + encode(header).byteLength;
    expect([...tensors.keys()]).toEqual(['a', 'b']);
    expect(tensors.get('b')).toEqual({ dtype: 'float32', shape: [2, 3], byteOffset: start + 4, byteLength: 24 });
    expect(metadata).toEqual(new Map([['format', 'pt']]));
  });

  test('0-d tensors, empty tensors, trailing spaces, an empty file', () => {
    const { tensors } = parse(
      `${JSON.stringify({ s: tensor('F16', [], [0, 2]), e: tensor('I64', [0, 5], [0, 0]) })}   `,
      2,
    );
    expect(tensors.get('s')?.shape).toEqual([]);
    expect(tensors.get('e')?.byteLength).toBe(0);
    expect(parse({}, 0).tensors.size).toBe(0);
  });

  test('prototype keys are tensors like any other', () => {
    const { tensors } = parse(
      '{"__proto__":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"constructor":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}',
      2,
    );
    expect([...tensors.keys()]).toEqual(['__proto__', 'constructor']);
    expect(({} as { dtype?: string }).dtype).toBeUndefined();
  });

  test('types that cannot be loaded are listed, and refused when used', () => {
    const { tensors } = parse(
      { a: tensor('F64', [1], [0, 8]), b: tensor('F8_E4M3', [3], [8, 11]), c: tensor('F4', [2], [11, 12]) },
      12,
    );
    expect(() => usableDType(tensors.get('a')!, 'a', 'x.safetensors')).toThrow(
      /x\.safetensors: tensor "a" is stored as F64; supported are F32/,
    );
  });
});

describe('hostile headers', () => {
  const f = (shape: unknown, offsets: unknown, dtype: unknown = 'F32') => ({ a: tensor(dtype, shape, offsets) });
  const cases: [string, string | object, number, RegExp][] = [
    ['no JSON', '{"a"', 0, /not valid JSON at line 1, column/],
    ['not an object', '[]', 0, /does not start with \{/],
    ['byte order mark', '\uFEFF{}', 0, /does not start with \{/],
    ['null entry', { a: null }, 0, /tensor "a": must be an object, got null/],
    ['unknown dtype', f([1], [0, 4], 'F33'), 4, /unknown dtype "F33"/],
    ['prototype dtype', f([1], [0, 4], 'constructor'), 4, /unknown dtype/],
    ['numeric dtype', f([1], [0, 4], 7), 4, /unknown dtype 7/],
    ['negative shape', f([-1], [0, 4]), 4, /shape must be an array of whole numbers/],
    ['fractional shape', f([1.5], [0, 6]), 6, /shape must be/],
    ['huge shape', '{"a":{"dtype":"F32","shape":[1e400],"data_offsets":[0,4]}}', 4, /shape must be/],
    ['shape beyond 2^53', '{"a":{"dtype":"F32","shape":[9007199254740993],"data_offsets":[0,4]}}', 4, /shape must be/],
    ['shape that overflows', f([2 ** 40, 2 ** 40, 2 ** 40], [0, 4]), 4, /needs .* bytes but data_offsets span 4/],
    ['string shape', f('1', [0, 4]), 4, /shape must be/],
    ['nested shape', f([[1]], [0, 4]), 4, /shape must be/],
    ['NaN', '{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,4]}}', 4, /not valid JSON/],
    ['reversed offsets', f([1], [4, 0]), 4, /data_offsets must be/],
    ['negative offsets', f([1], [-4, 0]), 4, /data_offsets must be/],
    ['three offsets', f([1], [0, 4, 8]), 8, /data_offsets must be/],
    ['offsets beyond the file', f([2], [0, 8]), 4, /its bytes end at 8 but the file holds 4/],
    ['size mismatch', f([2], [0, 4]), 4, /F32 of shape \[2\] needs 8 bytes but data_offsets span 4/],
    ['half a byte', f([1], [0, 1], 'F4'), 1, /needs 0\.5 bytes/],
    ['unknown key', { a: { ...tensor('F32', [1], [0, 4]), stride: 1 } }, 4, /unknown key "stride"/],
    ['missing key', { a: { dtype: 'F32', shape: [1] } }, 4, /data_offsets must be .* got nothing/],
    ['overlap', { a: tensor('F32', [2], [0, 8]), b: tensor('F32', [1], [4, 8]) }, 8, /"b" overlaps "a"/],
    ['same place', { a: tensor('F32', [1], [0, 4]), b: tensor('F32', [1], [0, 4]) }, 4, /overlaps/],
    ['gap', { a: tensor('F32', [1], [0, 4]), b: tensor('F32', [1], [8, 12]) }, 12, /4 bytes between "a" and "b"/],
    ['gap at the start', f([1], [4, 8]), 8, /4 bytes between "the header" and "a"/],
    ['bytes at the end', f([1], [0, 4]), 6, /2 bytes after "a" belong to nobody/],
    [
      'name twice',
      '{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
      1,
      /key "a" twice/,
    ],
    [
      'name twice, escaped',
      '{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"\\u0061":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
      1,
      /key "a" twice/,
    ],
    [
      'key twice in an entry',
      '{"a":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
      1,
      /key "dtype" twice/,
    ],
    ['metadata with a number', { __metadata__: { a: 1 } }, 0, /__metadata__ key "a" must be a string, got 1/],
    ['metadata that is an array', { __metadata__: [] }, 0, /__metadata__ must be an object/],
  ];
  test.each(cases)('%s', (_, header, dataBytes, message) => {
    expect(() => parse(header, dataBytes)).toThrow(message);
    expect(() => parse(header, dataBytes)).toThrow(/^x\.safetensors/);
  });

  test('not UTF-8', () => {
    expect(() => parseHeader(new Uint8Array([0x7b, 0xff, 0x7d]), 11, 'x')).toThrow('x: the header is not UTF-8');
  });

  test('lengths', () => {
    const prefix = (n: bigint) => new Uint8Array(new BigUint64Array([n]).buffer);
    expect(headerLength(prefix(2n), 10, 'x')).toBe(2);
    expect(() => headerLength(new Uint8Array(0), 0, 'x')).toThrow('x: not a safetensors file: it has only 0 bytes');
    expect(() => headerLength(prefix(3n), 10, 'x')).toThrow('x: cut short: a header of 3 bytes, but the file has 10');
    expect(() => headerLength(prefix(2n ** 64n - 1n), 10, 'x')).toThrow(/not a safetensors file/);
    expect(() => headerLength(prefix(BigInt(maxHeaderBytes) + 1n), 1e9, 'x')).toThrow(/not a safetensors file/);
  });
});

test('a planned header is what the parser reads, aligned to 8', () => {
  const entries = [
    { name: 'w "ü"', dtype: 'bfloat16', shape: [3, 5] },
    { name: '__proto__', dtype: 'int64', shape: [] },
    { name: 'e', dtype: 'uint8', shape: [0] },
  ] as const;
  const plan = planSafetensors(entries, { note: 'x' });
  expect(plan.header.byteLength % 8).toBe(0);
  expect(headerLength(plan.header, plan.fileBytes, 'x') + 8).toBe(plan.header.byteLength);
  const { tensors, metadata } = parseHeader(plan.header.subarray(8), plan.fileBytes, 'x');
  expect(tensors).toEqual(plan.tensors);
  expect([...plan.tensors.keys()]).toEqual(entries.map((e) => e.name));
  expect(metadata).toEqual(new Map([['note', 'x']]));
  expect(() => planSafetensors([entries[0], entries[0]])).toThrow(/twice/);
});

test('a header damaged anywhere is read or refused by name, never anything else', () => {
  const good = encode({
    __metadata__: { format: 'pt' },
    a: tensor('F32', [2, 3], [0, 24]),
    b: tensor('BF16', [4], [24, 32]),
  });
  let seed = 1;
  const next = () => {
    seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
    return seed >>> 8;
  };
  for (let round = 0; round < 5000; round++) {
    const bytes = good.slice();
    for (let n = next() % 3; n >= 0; n--)
      bytes[next() % bytes.length] = next() % 3 ? 0x20 + (next() % 96) : next() % 256;
    try {
      const { tensors } = parseHeader(bytes, 8 + bytes.length + 32, 'x.safetensors');
      let end = 8 + bytes.length;
      for (const entry of tensors.values()) {
        expect(entry.byteOffset).toBe(end);
        end += entry.byteLength;
      }
      expect(end).toBe(8 + bytes.length + 32);
    } catch (error) {
      expect(error).toBeInstanceOf(FileFormatError);
      expect((error as Error).message).toMatch(/^x\.safetensors/);
    }
  }
});
