// The ranks of a mesh: who is with whom along which axes, and other foldings of the same ranks.
import { describe, expect, it } from 'vitest';
import { DeviceMesh, ranksByHost } from '../../src/distributed/device_mesh.ts';

const names = ['replicate', 'shard', 'context', 'tensor'];
const shape = [2, 3, 2, 2];
const strides = [12, 4, 2, 1];
const inOrder = Array.from({ length: 24 }, (_, rank) => rank);
const world = inOrder.map((rank) => new DeviceMesh(shape, names, strides, inOrder, rank));

/** The sets of ranks that the meshes of all ranks name, each once. */
const groups = (axes: readonly string[], meshes = world): number[][] =>
  [...new Set(meshes.map((mesh) => mesh.ranksOf(...axes).join()))].map((text) => text.split(',').map(Number));

describe('ranks that were placed on two hosts in turn', () => {
  const order = ranksByHost({ hostOf: [0, 1, 0, 1] } as unknown as Parameters<typeof ranksByHost>[0]);
  const meshes = [0, 1, 2, 3].map((rank) => new DeviceMesh([2, 2], ['replicate', 'shard'], [2, 1], order, rank));

  it('share inner axes with ranks of their host', () => {
    expect(meshes.map((mesh) => mesh.ranksOf('shard'))).toEqual([
      [0, 2],
      [1, 3],
      [0, 2],
      [1, 3],
    ]);
    expect(meshes.map((mesh) => mesh.ranksOf('replicate'))).toEqual([
      [0, 1],
      [0, 1],
      [2, 3],
      [2, 3],
    ]);
    expect(meshes.map((mesh) => mesh.refold(['replicate', 'shard'], { all: 4 }).rankOn('all'))).toEqual([0, 2, 1, 3]);
  });
});

describe('groups', () => {
  it.each([
    [['tensor'], 2],
    [['shard'], 3],
    [['replicate', 'shard'], 6],
    [['shard', 'context'], 6],
    [['replicate', 'shard', 'context'], 12],
    [['shard', 'tensor'], 6],
    [names, 24],
    [[], 1],
  ])('along %j divide the world into parts of %i', (axes, size) => {
    const parts = groups(axes);
    expect(parts.every((ranks) => ranks.length === size)).toBe(true);
    expect(parts.flat().sort((a, b) => a - b)).toEqual(world.map((_, rank) => rank));
  });

  it('are flattened row by row, whatever the order in which axes are named', () => {
    expect(world[5]!.ranksOf('shard', 'tensor')).toEqual([0, 1, 4, 5, 8, 9]);
    expect(world[5]!.ranksOf('tensor', 'shard')).toEqual([0, 1, 4, 5, 8, 9]);
    expect(world[14]!.ranksOf('shard', 'context')).toEqual([12, 14, 16, 18, 20, 22]);
    expect(world[13]!.ranksOf()).toEqual([13]);
  });

  it('are those that every member names', () => {
    for (const mesh of world)
      for (const rank of mesh.ranksOf('shard', 'context'))
        expect(world[rank]!.ranksOf('shard', 'context')).toEqual(mesh.ranksOf('shard', 'context'));
  });
});

describe('another folding', () => {
  const folded = world.map((mesh) => mesh.refold(['shard', 'context'], { expertShard: 2, expert: 3 }));

  it('has the same ranks, and the other axes as they were', () => {
    expect(folded[0]!.dimNames).toEqual(['replicate', 'expertShard', 'expert', 'tensor']);
    expect(folded[0]!.shape).toEqual([2, 2, 3, 2]);
    expect(groups(['expertShard', 'expert'], folded)).toEqual(groups(['shard', 'context']));
    expect(groups(['tensor'], folded)).toEqual(groups(['tensor']));
    expect(folded[0]!.ranksOf('expert')).toEqual([0, 2, 4]);
    expect(folded[0]!.ranksOf('expertShard')).toEqual([0, 6]);
  });

  it('of one axis gives neighbours', () => {
    const halves = world.map((mesh) => mesh.refold(['shard'], { part: 1, copy: 3 }));
    expect(groups(['copy'], halves)).toEqual(groups(['shard']));
  });

  it('can be asked for beside the first', () => {
    const mesh = world[4]!.withView(folded[4]!);
    expect(mesh.ranksOf('expert')).toEqual([0, 2, 4]);
    expect(mesh.size('expert')).toBe(3);
    expect(mesh.rankOn('expert')).toBe(2);
    expect(mesh.size('shard')).toBe(3);
    expect(() => mesh.ranksOf('shard', 'expert')).toThrow('shard and expert are axes of different foldings');
  });

  it('must have as many ranks, of neighbouring axes', () => {
    expect(() => world[0]!.refold(['shard', 'context'], { a: 4, b: 2 })).toThrow(
      'axes of 3×2 ranks cannot be folded into 4×2',
    );
    expect(() => world[0]!.refold(['replicate', 'context'], { a: 4 })).toThrow(
      'replicate, context are not neighbouring axes of replicate, shard, context, tensor',
    );
    expect(() => world[0]!.group('pipeline')).toThrow(
      'the mesh has axes replicate, shard, context, tensor, not pipeline',
    );
  });
});
