// Tensors, handles and scopes: values cross exactly, stale handles throw, scopes free what they do not return.
import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { add } from '../../src/autograd/functions/arithmetic.ts';
import { memoryKinds, native } from '../../src/native.ts';
import { memoryStats } from '../../src/tensor/memory.ts';
import { scope } from '../../src/tensor/scope.ts';
import { Tensor } from '../../src/tensor/tensor.ts';

describe('Tensor', () => {
  it('keeps values of every dtype', async () => {
    const reals = [0, -1.5, 3, 1e-3];
    for (const dtype of ['float32', 'bfloat16', 'float16'] as const) {
      const data = await Tensor.from(reals, [2, 2], { dtype }).data();
      expect(data).toBeInstanceOf(Float32Array);
      expect(Math.max(...[...(data as Float32Array)].map((x, i) => Math.abs(x - reals[i]!)))).toBeLessThan(1e-5);
    }
    expect(await Tensor.from([1, -2, 2 ** 40], [3], { dtype: 'int64' }).data()).toEqual(
      BigInt64Array.of(1n, -2n, 1099511627776n),
    );
    expect(await Tensor.from([7, -8], [2], { dtype: 'int32' }).data()).toEqual(Int32Array.of(7, -8));
    expect(await Tensor.from([255, 0], [2], { dtype: 'uint8' }).data()).toEqual(Uint8Array.of(255, 0));
  });

  it('has the kinds of memory of cpp/core/storage.h, in their order', () => {
    const header = readFileSync('cpp/core/storage.h', 'utf8');
    const names = [...header.match(/enum class MemoryKind[^{]*{([^}]*)}/)![1]!.matchAll(/(\w+) = (\d+)/g)];
    expect(names.map(([, name, number]) => [name!.toLowerCase(), Number(number)])).toEqual(
      memoryKinds.map((kind, number) => [kind, number]),
    );
  });

  it.each(memoryKinds)('counts memory of kind %s as the addon does', (kind) => {
    expect(Object.keys(memoryStats().current)).toEqual(memoryKinds);
    const before = memoryStats().current;
    const tensor = Tensor.empty([1000], 'float32', kind);
    const risen = memoryKinds.filter((other) => memoryStats().current[other] > before[other]);
    tensor.dispose();
    expect(risen).toEqual([kind]);
  });

  it('refuses shapes that do not fit, and says what was given', () => {
    expect(() => Tensor.from([1, 2, 3], [2, 2])).toThrow('shape [2,2] wants 4 values but 3 were given');
    expect(() => Tensor.from([1, 2, 3]).view([2])).toThrow('does not fit');
    expect(() => Tensor.from([1, 2, 3]).narrow(2, 2)).toThrow('does not fit a tensor of 3');
    expect(() => Tensor.from([1, 2]).item()).toThrow('one element');
  });

  it('throws on use after dispose, and when a handle is none', () => {
    const tensor = Tensor.from([1]);
    const handle = tensor.handle;
    tensor.dispose();
    tensor.dispose();
    expect(() => tensor.item()).toThrow('disposed');
    expect(() => native.tensorRetain(handle)).toThrow('disposed');
    const reused = Tensor.from([2]);
    expect(reused.handle).not.toBe(handle);
    expect(() => native.tensorRetain(12345)).toThrow('not a tensor');
    expect(() => native.fill(native.eventRecord(0), 1)).toThrow('not a tensor');
    expect(() => native.copy(reused.handle, Number.NaN)).toThrow('not a tensor');
  });

  it('names op, got and wanted when an op does not fit', () => {
    const [a, b] = [Tensor.from([1, 2]), Tensor.from([1, 2, 3])];
    expect(() => native.add(a.handle, a.handle, b.handle)).toThrow('[add] b must have 2 elements but has 3');
    const ids = Tensor.from([1, 2], [2], { dtype: 'int64' });
    expect(() => native.add(a.handle, a.handle, ids.handle)).toThrow('[add] b must be floating but is int64');
  });

  it('has no data on meta', () => {
    const tensor = Tensor.from([1, 2], [2], { device: 'meta' });
    expect(tensor.device).toBe('meta');
    expect(() => tensor.item()).toThrow();
    expect(() => tensor.handle).toThrow('meta tensor');
  });

  it('shares storage between views', async () => {
    const tensor = Tensor.from([1, 2, 3, 4, 5, 6], [3, 2]);
    const rows = tensor.narrow(1, 2);
    native.fill(rows.handle, 9);
    expect([...((await tensor.data()) as Float32Array)]).toEqual([1, 2, 9, 9, 9, 9]);
  });
});

// Which tensors are freed, and not how many live: the finalizer frees those of earlier tests when it likes.
describe('scope', () => {
  const disposed = (...tensors: Tensor[]): boolean[] => tensors.map(({ isDisposed }) => isDisposed);

  it('frees what is not returned, also when it throws', async () => {
    const made: Tensor[] = [];
    const sum = (a: Tensor, b: Tensor): Tensor => {
      const result = add(a, b);
      made.push(result);
      return result;
    };
    const a = Tensor.from([1, 2]);
    const kept = scope(() => {
      const one = sum(a, a);
      const two = sum(one, a);
      return { two };
    });
    expect(disposed(a, ...made.splice(0))).toEqual([false, true, false]);
    expect([...((await kept.two.data()) as Float32Array)]).toEqual([3, 6]);
    expect(() =>
      scope(() => {
        sum(a, a);
        throw new Error('stop');
      }),
    ).toThrow('stop');
    expect(disposed(a, kept.two, ...made.splice(0))).toEqual([false, false, true]);
    await scope(async () => {
      sum(a, a);
      await Promise.resolve();
      return sum(a, a);
    });
    expect(disposed(a, kept.two, ...made)).toEqual([false, false, true, false]);
    for (const tensor of [a, kept.two, made[1]!]) tensor.dispose();
  });

  it('moves results to the enclosing scope', () => {
    const made: Tensor[] = [];
    scope(() => {
      const a = Tensor.from([1]);
      scope(() => {
        made.push(add(a, a), add(a, a));
        return [made[1]];
      });
      expect(disposed(a, ...made)).toEqual([false, true, false]);
      a.dispose();
    });
    expect(disposed(...made)).toEqual([true, true]);
  });
});
