// The buckets of a unit: what of its parameters lies in one flat buffer.
import { describe, expect, it } from 'vitest';
import type { ProcessGroup } from '../../src/distributed/process_group.ts';
import { Parameter } from '../../src/nn/parameter.ts';
import type { ShardGroups } from '../../src/parallel/fsdp/groups.ts';
import { bucketsOf } from '../../src/parallel/fsdp/units.ts';
import type { FloatDType } from '../../src/tensor/dtype.ts';

const group = (name: string, size: number): ProcessGroup => ({ name, size }) as ProcessGroup;

function groups(shard: ProcessGroup, replicate: ProcessGroup): ShardGroups {
  return { shard, gather: shard, replicate, tensor: undefined, grid: shard };
}

function parameter(name: string, numel: number, dtype: FloatDType = 'float32', isTrained = true): Parameter {
  const made = new Parameter([numel], dtype, { kind: 'constant', value: 0 });
  made.name = name;
  made.requiresGrad = isTrained;
  return made;
}

const dense = groups(group('all', 4), group('alone', 1));
const experts = groups(group('pair', 2), group('other pair', 2));

/** Each with the names of its parameters. */
function bucketsBy(groupsOf: (parameter: Parameter) => ShardGroups, parameters: Parameter[]): unknown[] {
  return bucketsOf({ name: 'layer', parameters }, groupsOf, undefined).map(
    ({ groups, layout, isTrainable, dtypes }) => ({
      shard: groups.shard.name,
      replicate: groups.replicate.name,
      master: dtypes.master,
      isTrainable,
      names: layout.spans.map(({ parameter }) => parameter.name),
      shardNumel: layout.shardNumel,
    }),
  );
}

describe('buckets', () => {
  it('are one for each shard and replicate group', () => {
    const parameters = [
      parameter('norm', 64),
      parameter('expert 0', 64),
      parameter('gate', 64),
      parameter('expert 1', 64),
    ];
    const of = ({ name }: Parameter): ShardGroups => (name.startsWith('expert') ? experts : dense);
    expect(bucketsBy(of, parameters)).toEqual([
      {
        shard: 'all',
        replicate: 'alone',
        master: 'float32',
        isTrainable: true,
        names: ['norm', 'gate'],
        shardNumel: 32,
      },
      {
        shard: 'pair',
        replicate: 'other pair',
        master: 'float32',
        isTrainable: true,
        names: ['expert 0', 'expert 1'],
        shardNumel: 64,
      },
    ]);
  });

  it('part where replicas alone differ', () => {
    const others = groups(dense.shard, group('two', 2));
    const of = ({ name }: Parameter): ShardGroups => (name === 'b' ? others : dense);
    expect(bucketsBy(of, [parameter('a', 8), parameter('b', 8)])).toHaveLength(2);
  });

  it('are shared by what reduces over the same groups, and one for each dtype and use', () => {
    const parameters = [
      parameter('frozen', 8, 'float32', false),
      parameter('a', 8),
      parameter('half', 8, 'bfloat16'),
      parameter('b', 8),
    ];
    // Objects of their own, but the same groups.
    const of = (): ShardGroups => groups(group('all', 4), group('alone', 1));
    expect(bucketsBy(of, parameters).map((bucket) => (bucket as { names: string[] }).names)).toEqual([
      ['a', 'b'],
      ['half'],
      ['frozen'],
    ]);
  });

  it('know which parameters are neighbours without a gap', () => {
    const [a, b, short, c] = [parameter('a', 32), parameter('b', 16), parameter('short', 9), parameter('c', 16)];
    const { layout } = bucketsOf({ name: 'layer', parameters: [a, b, short, c] }, () => dense, undefined)[0]!;
    expect(layout.rangeOf([a, b])).toEqual({ offset: 0, numel: 48 });
    expect(layout.rangeOf([b, short])).toEqual({ offset: 32, numel: 25 });
    for (const apart of [
      [b, a],
      [a, short],
      [short, c],
      [c, parameter('other', 16)],
      [parameter('other', 16), a],
    ])
      expect(layout.rangeOf(apart)).toBeUndefined();
  });
});
