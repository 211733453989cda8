// Safetensors files and checkpoint folders through the native reader and writer: bytes, conversions, splits, failures.
import { createHash } from 'node:crypto';
import { cp, mkdtemp, readdir, readFile, rename, rm, truncate, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, beforeEach, describe, expect, test, vi } from 'vitest';
import { CheckpointWriter, openCheckpoint, parseByteSize, planShards } from '../../src/checkpoint/hf-files.ts';
import {
  numelOf,
  openSafetensors,
  readTensor,
  type SafetensorsFile,
  SafetensorsWriter,
} from '../../src/checkpoint/safetensors.ts';
import { usableDType } from '../../src/checkpoint/safetensors-header.ts';
import { type Handle, native } from '../../src/native.ts';
import { type DType, dtypeNumber, dtypeSize } from '../../src/tensor/dtype.ts';

// Other test files may hold the cores meanwhile.
vi.setConfig({ testTimeout: 60_000 });

let dir: string;
beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), 'rz-files-'));
});
afterAll(() => rm(dir, { recursive: true }));

let count = 0;
const fresh = () => join(dir, `${count++}.safetensors`);

function tensorOf(numel: number, dtype: DType, bytes?: ArrayBufferView): Handle {
  const tensor = native.tensorEmpty(numel, dtypeNumber(dtype), 0);
  if (bytes) native.tensorWrite(tensor, bytes);
  return tensor;
}

function bytesOf(tensor: Handle, numel: number, dtype: DType): Uint8Array {
  const bytes = new Uint8Array(numel * dtypeSize(dtype));
  native.tensorRead(tensor, bytes);
  return bytes;
}

function load(file: SafetensorsFile, name: string, as?: DType): Uint8Array {
  const entry = file.tensors.get(name)!;
  const dtype = as ?? usableDType(entry, name, file.path);
  const tensor = tensorOf(numelOf(entry.shape), dtype);
  readTensor(file, name, tensor);
  const bytes = bytesOf(tensor, numelOf(entry.shape), dtype);
  native.tensorRelease(tensor);
  return bytes;
}

/** Runs `body` on a stream of its own: a stream that failed stays failed. */
async function onStream(body: (stream: number) => void | Promise<void>): Promise<void> {
  const stream = native.streamCreate('test');
  const previous = native.streamSetCurrent(stream);
  try {
    await body(stream);
  } finally {
    native.streamSetCurrent(previous);
  }
}

const digest = async (path: string) =>
  createHash('sha256')
    .update(await readFile(path))
    .digest('hex');

test('reads what Transformers wrote', async () => {
  const file = await openSafetensors('test/reference/llama/reference.safetensors');
  const { losses } = JSON.parse(await readFile('test/reference/llama/losses.json', 'utf8'));
  expect(new Float32Array(load(file, 'loss').buffer)[0]).toBeCloseTo(losses[0], 6);
  const ids = new BigInt64Array(load(file, 'input_ids').buffer);
  expect(file.tensors.get('input_ids')).toMatchObject({ dtype: 'int64', shape: [2, 24] });
  expect(ids.every((id) => id >= 3n && id < 130n)).toBe(true);
  file.close();
});

test('a file rewritten through tensors is the same, byte for byte', async () => {
  const source = 'test/reference/llama/model.safetensors';
  const file = await openSafetensors(source);
  const entries = [...file.tensors].map(([name, e]) => ({ name, dtype: usableDType(e, name, source), shape: e.shape }));
  const path = fresh();
  const writer = SafetensorsWriter.create(path, entries, Object.fromEntries(file.metadata));
  for (const { name, dtype, shape } of entries.toReversed()) {
    const tensor = tensorOf(numelOf(shape), dtype);
    readTensor(file, name, tensor);
    writer.write(name, tensor);
    native.tensorRelease(tensor);
  }
  file.close();
  await writer.finish();
  expect(await digest(path)).toBe(await digest(source));
});

describe('conversion', () => {
  const values = new Float32Array([0, -0, 1, -1.5, 1 / 3, 65504, 1e-7, 3e38, Infinity, NaN, 2 ** -24, 1.0039062]);

  test.each(['bfloat16', 'float16'] as const)('float32 → %s → float32 rounds once', async (dtype) => {
    const path = fresh();
    const writer = SafetensorsWriter.create(path, [{ name: 'x', dtype, shape: [values.length] }]);
    const tensor = tensorOf(values.length, 'float32', values);
    writer.write('x', tensor);
    await writer.finish();
    const file = await openSafetensors(path);
    const wide = new Float32Array(load(file, 'x', 'float32').buffer);
    wide.forEach((got, i) => {
      const value = values[i]!;
      if (Number.isNaN(value)) expect(got).toBeNaN();
      else if (dtype === 'float16' && Math.abs(value) > 65519) expect(Math.abs(got)).toBe(Infinity);
      else
        expect(
          Math.abs(got - value) <= Math.max(Math.abs(value) * 2 ** (dtype === 'bfloat16' ? -8 : -11), 2 ** -25) ||
            got === value,
        ).toBe(true);
    });
    // Reading as stored and as float32 agree: the upcast is exact.
    const again = fresh();
    const second = SafetensorsWriter.create(again, [{ name: 'x', dtype, shape: [values.length] }]);
    second.write('x', tensorOf(values.length, 'float32', wide));
    await second.finish();
    const file2 = await openSafetensors(again);
    expect(load(file2, 'x')).toEqual(load(file, 'x'));
    file.close();
    file2.close();
  });

  test('integers do not convert', async () => {
    const file = await openSafetensors('test/reference/llama/reference.safetensors');
    const tensor = tensorOf(48, 'float32');
    expect(() => readTensor(file, 'input_ids', tensor)).toThrow(/int64 is not converted to float32/);
    file.close();
  });
});

test('large ranges are read by several threads, in every dtype', async () => {
  const numel = 2_500_003; // 10 MB of float32, no multiple of a chunk
  const data = new Float32Array(numel);
  for (let i = 0; i < numel; i++) data[i] = (i % 251) - 125;
  const path = fresh();
  const writer = SafetensorsWriter.create(path, [{ name: 'x', dtype: 'float32', shape: [numel] }]);
  writer.write('x', tensorOf(numel, 'float32', data));
  await writer.finish();
  const file = await openSafetensors(path);
  for (const threads of [1, 3, 4]) {
    native.fileSetThreads(threads);
    expect(Buffer.compare(load(file, 'x'), new Uint8Array(data.buffer))).toBe(0);
  }
  const narrow = new Uint16Array(load(file, 'x', 'bfloat16').buffer);
  const bits = new Uint32Array(data.buffer);
  expect(narrow.every((value, i) => value === bits[i]! >>> 16)).toBe(true); // small integers are exact
  file.close();
});

describe('strided rows', () => {
  test.each([
    [37, 24, 8, 16], // narrow rows: read over the gaps
    [5, 40_000, 20_000, 3], // wide rows: one read each
    [3, 10, 10, 0], // no gap at all
  ])('%i rows of %i: columns of width %i from %i', async (rows, columns, width, from) => {
    const data = Float32Array.from({ length: rows * columns }, (_, i) => i);
    const path = fresh();
    const writer = SafetensorsWriter.create(path, [{ name: 'x', dtype: 'float32', shape: [rows, columns] }]);
    writer.write('x', tensorOf(data.length, 'float32', data));
    await writer.finish();
    const file = await openSafetensors(path);
    const tensor = tensorOf(rows * width, 'float32');
    const { byteOffset } = file.tensors.get('x')!;
    native.fileReadRows(file.file, byteOffset + from * 4, tensor, dtypeNumber('float32'), width, columns);
    const got = new Float32Array(bytesOf(tensor, rows * width, 'float32').buffer);
    const want = Float32Array.from(
      { length: rows * width },
      (_, i) => Math.floor(i / width) * columns + from + (i % width),
    );
    expect(got).toEqual(want);
    expect(() => native.fileReadRows(file.file, byteOffset, tensor, 0, width + 1, width)).toThrow(
      /do not fill a tensor/,
    );
    file.close();
  });
});

test('strided rows of many shapes equal the whole tensor, in every pair of dtypes', async () => {
  let seed = 7;
  const next = (most: number) => {
    seed = (Math.imul(seed, 1103515245) + 12345) >>> 0;
    return 1 + ((seed >>> 8) % most);
  };
  for (let round = 0; round < 24; round++) {
    const large = round % 12 === 0;
    const columns = large ? 1800 + next(64) : next(300);
    const rows = large ? 1500 : next(60);
    const width = large ? columns - next(64) : next(columns);
    const from = next(columns - width + 1) - 1;
    const stored = large ? 'float32' : (['float32', 'bfloat16', 'float16'] as const)[next(3) - 1]!;
    const wanted = (['float32', 'bfloat16', 'float16'] as const)[next(3) - 1]!;
    native.fileSetThreads(next(4));
    const path = fresh();
    const data = new Float32Array(rows * columns);
    for (let i = 0; i < data.length; i++) data[i] = ((i * 37) % 2039) / 8;
    const writer = SafetensorsWriter.create(path, [{ name: 'x', dtype: stored, shape: [rows, columns] }]);
    writer.write('x', tensorOf(data.length, 'float32', data));
    await writer.finish();
    const file = await openSafetensors(path);
    const whole = load(file, 'x', wanted);
    const bytes = dtypeSize(wanted);
    const tensor = tensorOf(rows * width, wanted);
    const offset = file.tensors.get('x')!.byteOffset + from * dtypeSize(stored);
    native.fileReadRows(file.file, offset, tensor, dtypeNumber(stored), width, columns);
    const got = bytesOf(tensor, rows * width, wanted);
    for (let r = 0; r < rows; r++) {
      const row = whole.subarray((r * columns + from) * bytes, (r * columns + from + width) * bytes);
      if (Buffer.compare(got.subarray(r * width * bytes, (r + 1) * width * bytes), row) !== 0) {
        expect.fail(`row ${r} of ${rows} × ${columns}, columns ${from} + ${width}, ${stored} → ${wanted}`);
      }
    }
    native.tensorRelease(tensor);
    file.close();
    await rm(path);
  }
});

test('a sync waits for the writes of other streams', async () => {
  const path = fresh();
  const numel = 1_000_000;
  const writer = SafetensorsWriter.create(path, [{ name: 'x', dtype: 'float16', shape: [numel] }]);
  const tensor = tensorOf(numel, 'float32', new Float32Array(numel).fill(2));
  native.streamSynchronize(0);
  await onStream(() => writer.write('x', tensor)); // the writer goes on on the compute stream
  await writer.finish();
  const file = await openSafetensors(path);
  expect(new Uint16Array(load(file, 'x').buffer).every((bits) => bits === 0x4000)).toBe(true);
  file.close();
});

describe('the writer', () => {
  const plan = [
    { name: 'a', dtype: 'float32', shape: [4] },
    { name: 'b', dtype: 'int64', shape: [2] },
  ] as const;

  test('accepts ranges in any order, and nothing appears before finish', async () => {
    const path = fresh();
    const writer = SafetensorsWriter.create(path, plan);
    writer.write('b', tensorOf(2, 'int64', new BigInt64Array([7n, -8n])));
    writer.write('a', tensorOf(2, 'float32', new Float32Array([3, 4])), 2);
    writer.write('a', tensorOf(2, 'float32', new Float32Array([1, 2])), 0);
    await expect(readFile(path)).rejects.toThrow(/ENOENT/);
    await writer.finish();
    const file = await openSafetensors(path);
    expect(new Float32Array(load(file, 'a').buffer)).toEqual(new Float32Array([1, 2, 3, 4]));
    expect(new BigInt64Array(load(file, 'b').buffer)).toEqual(new BigInt64Array([7n, -8n]));
    file.close();
  });

  test('names what is missing and leaves nothing behind', async () => {
    const folder = await mkdtemp(join(dir, 'incomplete-'));
    const path = join(folder, 'x.safetensors');
    const writer = SafetensorsWriter.create(path, plan);
    const half = tensorOf(2, 'float32', new Float32Array(2));
    writer.write('a', half);
    expect(() => writer.write('a', half, 3)).toThrow(/2 elements do not fit into the 1 that are left/);
    expect(() => writer.write('a', half, -1)).toThrow(/has 4 elements, none at -1/);
    expect(() => writer.write('c', half)).toThrow(/not planned to hold a tensor "c"/);
    await expect(writer.finish()).rejects.toThrow(
      /is not complete: "a" \(2 elements\), "b" \(2 elements\) were not written/,
    );
    await writer.abort();
    expect(await readdir(folder)).toEqual([]);
  });

  test('a folder that is not there', () => {
    expect(() => SafetensorsWriter.create(join(dir, 'no', 'x.safetensors'), plan)).toThrow(
      /cannot create .*No such file/,
    );
  });

  test('a full disk names the file and the reason', async () => {
    const tensor = tensorOf(1024, 'float32', new Float32Array(1024));
    await onStream((stream) => {
      const full = native.fileCreate('/dev/full');
      native.fileWrite(full, 0, tensor, 0);
      native.fileClose(full);
      expect(() => native.streamSynchronize(stream)).toThrow(
        expect.objectContaining({
          code: 'ERR_FILE_WRITE',
          message: expect.stringMatching(/4096 bytes at offset 0 of \/dev\/full: No space left/),
        }),
      );
    });
  });
});

describe('descriptors', () => {
  test('reads go on after close, after the file was replaced, and a closed handle throws', async () => {
    const path = fresh();
    await cp('test/reference/llama/model.safetensors', path);
    const file = await openSafetensors(path);
    const want = load(file, 'lm_head.weight');
    await writeFile(`${path}.new`, 'other');
    await rename(`${path}.new`, path);
    const tensor = tensorOf(130 * 64, 'float32');
    readTensor(file, 'lm_head.weight', tensor);
    file.close();
    expect(bytesOf(tensor, 130 * 64, 'float32')).toEqual(want);
    expect(() => readTensor(file, 'lm_head.weight', tensor)).toThrow(/this file was disposed/);
  });

  test('a file cut short after it was opened is a named error', async () => {
    const path = fresh();
    await cp('test/reference/llama/model.safetensors', path);
    const file = await openSafetensors(path);
    await truncate(path, 5000);
    await onStream((stream) => {
      const tensor = tensorOf(130 * 64, 'float32');
      readTensor(file, 'lm_head.weight', tensor);
      expect(() => native.streamSynchronize(stream)).toThrow(
        expect.objectContaining({
          code: 'ERR_FILE_TRUNCATED',
          message: expect.stringMatching(
            /\.safetensors is cut short: 33280 bytes were wanted at offset 2136, got 2864/,
          ),
        }),
      );
    });
    file.close();
    await expect(openSafetensors(path)).rejects.toThrow(/its bytes end at .* \(is the file cut short/);
  });

  test('bytes beyond the end are refused at once', async () => {
    const file = await openSafetensors('test/reference/llama/model.safetensors');
    const bytes = native.fileSize(file.file);
    expect(() => native.fileReadBytes(file.file, bytes - 1, 2)).toThrow(
      /2 bytes were wanted at offset .* but the file has/,
    );
    expect((await native.fileReadBytes(file.file, bytes - 1, 1)).byteLength).toBe(1);
    expect(() => native.fileReadBytes(file.file, -1, 2)).toThrow(/offset cannot be -1/);
    file.close();
  });

  test('what is no file, or nothing', async () => {
    await expect(openSafetensors(dir)).rejects.toThrow(/not a regular file/);
    await expect(openSafetensors(join(dir, 'none'))).rejects.toThrow(
      expect.objectContaining({ code: 'ERR_FILE_OPEN' }),
    );
    await writeFile(join(dir, 'empty'), '');
    await expect(openSafetensors(join(dir, 'empty'))).rejects.toThrow(/only 0 bytes/);
  });
});

describe('checkpoint folders', () => {
  let folder: string;
  beforeEach(async () => {
    folder = join(dir, `checkpoint-${count++}`);
    await cp('examples/moby-llama', folder, { recursive: true });
  });

  test('several files are one map', async () => {
    const checkpoint = await openCheckpoint(folder);
    expect(checkpoint.files.length).toBe(3);
    expect(checkpoint.tensors.size).toBe(6 * 9 + 3);
    expect(checkpoint.tensors.get('lm_head.weight')?.source.path).toBe(
      join(folder, 'model-00003-of-00003.safetensors'),
    );
    checkpoint.close();
  });

  test('missing files are named together', async () => {
    await rm(join(folder, 'model-00001-of-00003.safetensors'));
    await rm(join(folder, 'model-00003-of-00003.safetensors'));
    await expect(openCheckpoint(folder)).rejects.toThrow(
      /2 of 3 files are missing: model-00001-of-00003\.safetensors, model-00003-of-00003\.safetensors/,
    );
  });

  test('index and files must agree', async () => {
    const path = join(folder, 'model.safetensors.index.json');
    const index = JSON.parse(await readFile(path, 'utf8'));
    index.weight_map['lm_head.weight'] = 'model-00001-of-00003.safetensors';
    index.weight_map.ghost = 'model-00002-of-00003.safetensors';
    index.weight_map.alive = 'model-00003-of-00003.safetensors';
    delete index.weight_map['model.norm.weight'];
    await writeFile(path, JSON.stringify(index));
    await expect(openCheckpoint(folder)).rejects.toThrow(
      /disagree: "lm_head\.weight" is not in model-00001.*"ghost" is not in model-00002.*"model\.norm\.weight" in .* is not in the index/,
    );
    index.weight_map.alive = '../model.safetensors';
    await writeFile(path, JSON.stringify(index));
    await expect(openCheckpoint(folder)).rejects.toThrow(
      /must name a \.safetensors file of this folder, got "\.\.\/model/,
    );
  });

  test('pickles are refused with what to do', async () => {
    const pickled = join(dir, `pickled-${count++}`);
    await cp('test/reference/llama/config.json', join(pickled, 'config.json'));
    await expect(openCheckpoint(pickled)).rejects.toThrow(
      /no model\.safetensors and no model\.safetensors\.index\.json/,
    );
    await writeFile(join(pickled, 'pytorch_model.bin'), '');
    await expect(openCheckpoint(pickled)).rejects.toThrow(
      /PyTorch pickles \(pytorch_model\.bin\).*Convert them to safetensors/,
    );
  });

  test('a folder is rewritten over itself, in another split, without a changed byte of data', async () => {
    const checkpoint = await openCheckpoint(folder);
    const entries = [...checkpoint.tensors].map(([name, e]) => ({
      name,
      dtype: usableDType(e, name, folder),
      shape: e.shape,
    }));
    const want = new Map(entries.map(({ name }) => [name, load(checkpoint.tensors.get(name)!.source, name)]));
    for (const maxShardSize of ['1MB', '5GB']) {
      const writer = await CheckpointWriter.create(folder, entries, { maxShardSize });
      for (const { name, dtype, shape } of entries) {
        const tensor = tensorOf(numelOf(shape), dtype);
        readTensor(checkpoint.tensors.get(name)!.source, name, tensor);
        writer.write(name, tensor);
        native.tensorRelease(tensor);
      }
      await writer.finish();
      const names = (await readdir(folder)).filter((name) => name.includes('safetensors'));
      expect(names.length).toBe(maxShardSize === '5GB' ? 1 : writer.plan.shards.length + 1);
      const again = await openCheckpoint(folder);
      for (const [name, bytes] of want)
        expect(Buffer.compare(load(again.tensors.get(name)!.source, name), bytes)).toBe(0);
      again.close();
    }
    checkpoint.close();
  });

  test('a failed write leaves the old weights', async () => {
    const path = join(folder, 'model-00001-of-00003.safetensors');
    const before = await digest(path);
    const writer = await CheckpointWriter.create(folder, [{ name: 'x', dtype: 'float32', shape: [1] }]);
    await expect(writer.finish()).rejects.toThrow(/is not complete/);
    expect(await digest(path)).toBe(before);
    expect((await readdir(folder)).filter((name) => name.endsWith('.tmp'))).toEqual([]);
  });
});

test('files are split by size, in order', () => {
  const entry = (name: string, numel: number) => ({ name, dtype: 'float32', shape: [numel] }) as const;
  const plan = planShards([entry('a', 10), entry('b', 10), entry('c', 50), entry('d', 1)], 80);
  expect(plan.shards.map((s) => s.entries.map((e) => e.name))).toEqual([['a', 'b'], ['c'], ['d']]);
  expect(plan.index).toEqual({
    metadata: { total_parameters: 71, total_size: 284 },
    weight_map: {
      a: 'model-00001-of-00003.safetensors',
      b: 'model-00001-of-00003.safetensors',
      c: 'model-00002-of-00003.safetensors',
      d: 'model-00003-of-00003.safetensors',
    },
  });
  expect(planShards([entry('a', 1)])).toMatchObject({ shards: [{ fileName: 'model.safetensors' }], index: undefined });
  expect(parseByteSize('5GB')).toBe(5e9);
  expect(parseByteSize('1.5 GiB')).toBe(1.5 * 2 ** 30);
  expect(() => parseByteSize('lots')).toThrow(/must look like 5GB/);
});
