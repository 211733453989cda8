// A device mesh: the ranks of the world laid out in a grid of named axes, and the only maker of process groups.
import { processState } from '../core/context.ts';
import { dist } from './index.ts';
import type { ProcessGroup } from './process_group.ts';

// A set of ranks has one group for each use, whichever mesh asks for it.
const made: WeakMap<ProcessGroup, Map<string, ProcessGroup>> = processState(
  'groups',
  'process groups, by the world that they are of, their ranks and use',
  new WeakMap(),
);

/**
 * @internal The group of these ranks of the world, this one among them; one more of them for a `use` whose collectives must not
 * wait for others. Collective over them at the first call.
 */
export function groupOfRanks(ranks: readonly number[], use = ''): ProcessGroup {
  const world = dist.group;
  if (use === '' && ranks.length === world.size && ranks.every((rank, i) => rank === i)) return world;
  let groups = made.get(world);
  if (!groups) {
    groups = new Map();
    made.set(world, groups);
  }
  const key = `${use} ${ranks.join()}`;
  let group = groups.get(key);
  if (!group) {
    group = world.split(ranks)!;
    groups.set(key, group);
  }
  return group;
}

/** @internal `group` as rows of `length` neighbours: this rank's row, and its column, the ranks at its place in each row. Collective. */
export function foldGroup(group: ProcessGroup, length: number): { row: ProcessGroup; column: ProcessGroup } {
  const [first, at] = [group.rank - (group.rank % length), group.rank % length];
  const row = group.ranks.slice(first, first + length);
  const column = group.ranks.filter((_, i) => i % length === at);
  return { row: groupOfRanks(row), column: groupOfRanks(column) };
}

/** @internal The grid of two groups of this rank, `inner` fastest; its other rows lie as far apart as this one's ranks. Collective. */
export function gridOf(outer: ProcessGroup, inner: ProcessGroup): ProcessGroup {
  const offsets = inner.ranks.map((rank) => rank - dist.group.rank);
  return groupOfRanks(outer.ranks.flatMap((rank) => offsets.map((offset) => rank + offset)));
}

export class DeviceMesh {
  /** Ranks along each axis. */
  readonly shape: readonly number[];
  /** Names of the axes, outermost first. */
  readonly dimNames: readonly string[];
  /** Position of this rank on each axis. */
  readonly coordinate: readonly number[];
  /** The same ranks folded otherwise; their axes can be asked for here too. */
  private readonly views: readonly DeviceMesh[];
  /** Positions between neighbours on each axis. */
  private readonly strides: readonly number[];
  /** The world rank at each position. */
  private readonly order: readonly number[];
  private readonly position: number;

  /** @internal See initDeviceMesh. `strides`: of each axis, in positions; `order`: the world rank at each, `rank` among them. */
  constructor(
    shape: readonly number[],
    dimNames: readonly string[],
    strides: readonly number[],
    order: readonly number[],
    rank: number,
    views: readonly DeviceMesh[] = [],
  ) {
    this.shape = shape;
    this.dimNames = dimNames;
    this.strides = strides;
    this.order = order;
    this.position = order.indexOf(rank);
    this.coordinate = shape.map((length, axis) => Math.floor(this.position / strides[axis]!) % length);
    this.views = views;
  }

  private find(axis: string | number): { mesh: DeviceMesh; index: number } {
    const index = typeof axis === 'number' ? axis : this.dimNames.indexOf(axis);
    if (this.shape[index] !== undefined) return { mesh: this, index };
    for (const view of this.views) if (typeof axis === 'string' && view.dimNames.includes(axis)) return view.find(axis);
    const names = [...this.dimNames, ...this.views.flatMap((view) => view.dimNames)];
    throw new RangeError(`the mesh has axes ${[...new Set(names)].join(', ')}, not ${axis}`);
  }

  /** Ranks along an axis. Throws a RangeError for one that the mesh does not have. */
  size(axis: string): number {
    const { mesh, index } = this.find(axis);
    return mesh.shape[index]!;
  }

  /** Position of this rank on an axis. */
  rankOn(axis: string): number {
    const { mesh, index } = this.find(axis);
    return mesh.coordinate[index]!;
  }

  /** World ranks that differ from this one on the given axes alone, the last of the mesh's axes fastest. */
  ranksOf(...axes: readonly string[]): number[] {
    const found = axes.map((axis) => this.find(axis));
    const mesh = found[0]?.mesh ?? this;
    if (found.some((one) => one.mesh !== mesh))
      throw new RangeError(`${axes.join(' and ')} are axes of different foldings`);
    const indices = [...new Set(found.map(({ index }) => index))].sort((a, b) => a - b);
    let positions = [indices.reduce((at, i) => at - mesh.coordinate[i]! * mesh.strides[i]!, mesh.position)];
    for (const i of indices)
      positions = positions.flatMap((first) =>
        Array.from({ length: mesh.shape[i]! }, (_, at) => first + at * mesh.strides[i]!),
      );
    return positions.map((position) => mesh.order[position]!);
  }

  /**
   * The ranks that differ from this one on the given axes alone, flattened; without axes this rank alone. Made when it is first
   * asked for, by all of its ranks. Mirrors DeviceMesh's `_flatten`. Throws a RangeError for another axis.
   */
  group(...axes: readonly string[]): ProcessGroup {
    return groupOfRanks(this.ranksOf(...axes));
  }

  /** The group along one axis, by name or index. */
  getGroup(axis: string | number): ProcessGroup {
    const { mesh, index } = this.find(axis);
    return groupOfRanks(mesh.ranksOf(mesh.dimNames[index]!));
  }

  /**
   * The same ranks with the axes `from`, neighbours in this mesh, folded into others: names and sizes, outermost first. No
   * communication. Throws a RangeError when the sizes do not multiply to the same.
   */
  refold(from: readonly string[], into: Readonly<Record<string, number>>): DeviceMesh {
    const first = this.dimNames.indexOf(from[0] ?? '');
    const count = from.length;
    const sizes = Object.values(into);
    const product = (lengths: readonly number[]): number => lengths.reduce((all, length) => all * length, 1);
    const old = this.shape.slice(first, first + count);
    const neighbours = first >= 0 && from.every((axis, i) => this.dimNames[first + i] === axis);
    if (!neighbours)
      throw new RangeError(`${from.join(', ')} are not neighbouring axes of ${this.dimNames.join(', ')}`);
    if (product(sizes) !== product(old))
      throw new RangeError(`axes of ${old.join('×')} ranks cannot be folded into ${sizes.join('×')}`);
    const innermost = this.strides[first + count - 1]!;
    const strides = sizes.map((_, i) => innermost * product(sizes.slice(i + 1)));
    const spliced = <T>(list: readonly T[], middle: readonly T[]): T[] => [
      ...list.slice(0, first),
      ...middle,
      ...list.slice(first + count),
    ];
    return new DeviceMesh(
      spliced(this.shape, sizes),
      spliced(this.dimNames, Object.keys(into)),
      spliced(this.strides, strides),
      this.order,
      this.order[this.position]!,
    );
  }

  /** @internal This mesh, which answers for the axes of `view` too. */
  withView(view: DeviceMesh): DeviceMesh {
    const rank = this.order[this.position]!;
    return new DeviceMesh(this.shape, this.dimNames, this.strides, this.order, rank, [...this.views, view]);
  }
}

/** @internal The ranks of the world, those of a host together: how they lie on a mesh whose inner axes want to stay on a host. */
export function ranksByHost({ hostOf }: ProcessGroup): number[] {
  return hostOf.map((_, rank) => rank).sort((a, b) => hostOf[a]! - hostOf[b]! || a - b);
}

/**
 * Lays the world out row by row: the last axis has consecutive ranks. Mirrors torch.distributed.device_mesh.init_device_mesh.
 * Throws a RangeError when the sizes do not multiply to the world size.
 */
export function initDeviceMesh(
  shape: readonly number[],
  options: { dimNames?: readonly string[] | undefined /** @internal */; order?: readonly number[] | undefined } = {},
): DeviceMesh {
  const world = dist.group;
  const size = shape.reduce((product, axis) => product * axis, 1);
  if (shape.some((axis) => !Number.isInteger(axis) || axis < 1) || size !== world.size) {
    throw new RangeError(`a mesh of ${shape.join('×')} ranks does not fit a world of ${world.size}`);
  }
  const dimNames = options.dimNames ?? shape.map((_, axis) => `dim${axis}`);
  if (dimNames.length !== shape.length)
    throw new RangeError(`${shape.length} axes want as many names, but ${dimNames.length} were given`);
  if (new Set(dimNames).size !== dimNames.length) throw new RangeError(`axes of one name: ${dimNames.join(', ')}`);
  const strides = shape.map((_, axis) => shape.slice(axis + 1).reduce((product, next) => product * next, 1));
  const order = options.order ?? world.ranks;
  return new DeviceMesh(shape, dimNames, strides, order, world.rank);
}
