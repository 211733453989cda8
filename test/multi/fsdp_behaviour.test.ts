// What FSDP does at its edges: the same error on every rank, user init functions, policies, frozen and ignored modules.
import { describe, expect, it } from 'vitest';
import { expectRanks, fixture } from './helpers.ts';

// biome-ignore lint/suspicious/noExplicitAny: each case prints its own shape
async function run(what: string, world = 2): Promise<any[]> {
  const { stdout } = await expectRanks(world, fixture('fsdp_errors.mjs'), { args: [what] });
  return stdout.map((text) => JSON.parse(/^RESULT (.*)$/m.exec(text)![1]!));
}

describe('errors that every rank gets', () => {
  it.each([
    [
      'differentModels',
      /ranks 0 and 1 differ.*rank 0 has lm_head\.weight.*rank 1 has model\.layers\.2\..*\(21 and 30 entries\)/,
    ],
    ['differentShapes', /rank 0 has model\.layers\.0\.mlp\.gate_proj\.weight \[96,64\].*rank 1 has .* \[128,64\]/],
    ['differentDtypes', /rank 0 has model\.embed_tokens\.weight \[130,64\] float32.*rank 1 has .* bfloat16/],
    ['differentlyFrozen', /rank 1 has .* float32, frozen,/],
    ['metaOnRank0', /rank 0 must hold the weights that it sends, but model\.embed_tokens\.weight is on meta/],
    ['metaLeft', /model\.embed_tokens\.weight is still on meta after its init function/],
    ['tiedAcrossUnits', /embed_tokens\.weight is tied across units model\.embed_tokens and lm_head/],
    ['integerParameter', /weight is int64; only floating parameters can be trained/],
    ['childBeforeRoot', /model\.layers\.0 was run before the root/],
    ['twice', /wrapped already/],
    ['unknownClass', /could not find the layer class Nothing/],
    ['hybridDegree', /shard degree 3 of HYBRID_SHARD must divide the 2 ranks/],
    ['meshSize', /mesh of 2×2 ranks does not fit a world of 2/],
    ['meshAxes', /HYBRID_SHARD wants a mesh of two axes, replicate and shard, but it has 1/],
    ['shardedRead', /model\.embed_tokens\.weight is sharded by FSDP/],
    ['notInited', /not initialised; still on meta: model\.embed_tokens\.weight.*; 0 of \d+ elements went/],
  ])('%s', async (what, message) => {
    const results = await run(what);
    expect(results.length).toBe(2);
    for (const { error } of results) expect(error).toMatch(message);
  });
});

describe('deferred init', () => {
  it('calls a user function once for every module, and overwrites what it did by the sync', async () => {
    const [rank0, rank1] = await run('userInit');
    // every module with parameters: embedding, 2 × (7 linears, 2 norms), norm, head
    expect(rank1.seen).toBe(21);
    expect(rank0.seen).toBe(0);
    expect(rank1.loss).toBe(rank0.loss);
    expect([rank0.params, rank0.inited]).toEqual([78400, 0]);
    expect([rank1.params, rank1.inited]).toEqual([78400, 78400]);
  });

  it('draws the same bits for every world size', async () => {
    const worlds = await Promise.all([1, 2, 4].map((world) => run('freshWeights', world)));
    for (const result of worlds.flat()) expect(result).toEqual(worlds[0]![0]);
    expect(new Set(worlds[0]![0].embedding).size).toBe(4);
  });

  it('follows the ties of rank 0', async () => {
    for (const result of await run('tiesFollowRank0')) expect(result).toEqual({ tied: false, names: 21 });
  });
});

describe('wrapping', () => {
  it('takes every policy, with the same loss', async () => {
    const [{ size, lambda, none, list }] = await run('policies');
    expect(lambda[0]).toBe(3);
    expect(none[0]).toBe(1);
    expect(list[0]).toBe(2);
    expect(size[0]).toBeGreaterThan(1);
    for (const [, loss] of [size, lambda, list]) expect(loss).toBe(none[1]);
  });

  it('takes modules that were wrapped by hand', async () => {
    const [nested] = await run('nested');
    const [{ none }] = await run('policies');
    expect(nested.units).toBe(3);
    expect(nested.loss).toBe(none[1]);
    expect(nested.norm).toBeGreaterThan(0);
  });

  it('leaves frozen parameters alone', async () => {
    const [{ changed, norm }, other] = await run('frozen');
    expect(other.norm).toBe(norm);
    expect(changed.length).toBeGreaterThan(0);
    expect(changed.filter((name: string) => /embed_tokens|mlp/.test(name))).toEqual([]);
    expect(changed).toContain('lm_head.weight');
  });

  it('leaves ignored modules as they are, and saves them', async () => {
    for (const { own, wrong } of await run('ignored')) {
      expect(own).toBe(true);
      expect(wrong).toEqual([]);
    }
  });
});

describe('updates', () => {
  it('are seen by the next forward, whatever ran between backward and step', async () => {
    for (const { plain, extra } of await run('forwardBeforeStep')) {
      expect(extra).toEqual(plain);
      expect(plain[3]).toBeLessThan(plain[0]);
    }
  });

  it('are whole after a backward that threw', async () => {
    for (const { before, message, after } of await run('backwardThatThrows')) {
      expect(message).toBe('stop');
      expect(after).toBe(before);
    }
  });
});

describe('whole parameters', () => {
  it('are written back by summonFullParams and seen by every state dict', async () => {
    const [rank0, rank1] = await run('summonWritesBack');
    expect(rank0.all).toBe(true);
    expect([rank0.full, rank1.full]).toEqual([21, 0]);
    expect(rank0.elements + rank1.elements).toBe(78400);
    expect(rank0.local).toEqual(['model.embed_tokens', 'model.layers.0', 'model.layers.1', 'lm_head', '']);
  });

  it('generate the same on all ranks as in one process', async () => {
    for (const { ids, single } of await run('generates')) expect(ids).toEqual(single);
  });
});
