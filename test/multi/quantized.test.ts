// A quantised base on several ranks: parts have the bits of the whole, however it is divided and loaded; training has those of a
// model with what the weights stand for; four bits travel.
import { expect, it } from 'vitest';
import { expectRanks, fixture } from './helpers.ts';

interface Result {
  names: number;
  differing: string[];
  losses: number[];
  plain: number[];
  loadingPeak: number;
  elements: number[];
  bytes: number[][];
  quantised: [numel: number, bytes: number, piece: number][];
  gathers: [op: string, bytes: number, dtype: string][];
  problem: string;
}

async function run(world: number, settings: object, env: Record<string, string> = {}): Promise<Result[]> {
  const { stdout } = await expectRanks(world, fixture('quantized.mjs'), { args: [JSON.stringify(settings)], env });
  return stdout.map((text) => JSON.parse(text) as Result);
}

it.each([
  [1, {}],
  [2, { source: 'all', mixed: 'bfloat16' }],
  [4, { tp: 2 }],
  [2, { tp: 2, name: 'gpt-neox', doubleQuant: false }],
  [2, { tp: 2, scheme: 'int8', dtype: 'bfloat16' }],
  [2, { tp: 2, source: 'fresh' }],
  [2, { shardingStrategy: 'SHARD_GRAD_OP' }],
  [2, { shardingStrategy: 'NO_SHARD', source: 'all' }],
  [4, { shardingStrategy: 'HYBRID_SHARD', hybridShardDegree: 2 }],
])('%i ranks, %o: parts and training have the bits of the whole', async (world, settings) => {
  for (const { names, differing, losses, plain, problem } of await run(world, settings)) {
    expect(names).toBe('name' in settings ? 8 : 14);
    expect(differing).toEqual([]);
    expect(losses).toEqual(plain);
    expect(losses[2]!).toBeLessThan(losses[0]! - 1);
    expect(problem).toMatch(
      /q.*weight is quantised and a full state dict cannot have it: .* merge that into the model/,
    );
  }
});

it('gathers 4 bits and a little for each element', async () => {
  for (const { gathers, bytes, elements } of await run(2, {}, { RANKZERO_FSDP_GATHER: 'copy' })) {
    const layers = bytes.flat();
    expect(gathers.filter(([, , dtype]) => dtype === 'uint8').map(([, count]) => count)).toEqual(layers);
    for (const [i, count] of layers.entries()) expect(count / elements[i + 1]!).toBeLessThan(0.53);
  }
});

it('repeats scales where a part cuts a block, and holds no unquantised unit', async () => {
  const [first] = (await run(2, { tp: 2 })) as [Result];
  expect(new Set(first.quantised.map(([, , piece]) => piece))).toEqual(new Set([64, 32, 16]));
  // One whole parameter, and the unit in 4 bits, whole and in parts.
  expect(first.loadingPeak).toBeLessThan(2 * 30848 * 4);
});
