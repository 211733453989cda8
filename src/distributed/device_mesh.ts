// A device mesh: the ranks of the world laid out in a grid, with a process group along each axis.
import { dist } from './index.ts';
import type { ProcessGroup } from './process_group.ts';

export class DeviceMesh {
  readonly shape: readonly number[];
  readonly dimNames: readonly string[];
  /** Position of this rank on each axis. */
  readonly coordinate: readonly number[];
  private readonly groups: readonly ProcessGroup[];

  /** @internal See initDeviceMesh. */
  constructor(
    shape: readonly number[],
    dimNames: readonly string[],
    coordinate: readonly number[],
    groups: readonly ProcessGroup[],
  ) {
    this.shape = shape;
    this.dimNames = dimNames;
    this.coordinate = coordinate;
    this.groups = groups;
  }

  /** The ranks that differ from this one on one axis only, by name or index. Throws a RangeError for another axis. */
  getGroup(axis: string | number): ProcessGroup {
    const index = typeof axis === 'number' ? axis : this.dimNames.indexOf(axis);
    const group = this.groups[index];
    if (!group) throw new RangeError(`the mesh has axes ${this.dimNames.join(', ')}, not ${axis}`);
    return group;
  }
}

/**
 * Lays the world out row by row: the last axis has consecutive ranks. Mirrors torch.distributed.device_mesh.init_device_mesh.
 * Collective. Throws a RangeError when the sizes do not multiply to the world size.
 */
export function initDeviceMesh(
  shape: readonly number[],
  options: { dimNames?: readonly string[] | undefined } = {},
): DeviceMesh {
  const world = dist.group;
  const size = shape.reduce((product, axis) => product * axis, 1);
  if (shape.some((axis) => !Number.isInteger(axis) || axis < 1) || size !== world.size) {
    throw new RangeError(`a mesh of ${shape.join('×')} ranks does not fit a world of ${world.size}`);
  }
  const dimNames = options.dimNames ?? shape.map((_, axis) => `dim${axis}`);
  if (dimNames.length !== shape.length)
    throw new RangeError(`${shape.length} axes want as many names, but ${dimNames.length} were given`);
  const stride = (axis: number): number => shape.slice(axis + 1).reduce((product, next) => product * next, 1);
  const coordinate = shape.map((length, axis) => Math.floor(world.rank / stride(axis)) % length);
  const groups = shape.map((length, axis) => {
    const first = world.rank - coordinate[axis]! * stride(axis);
    return world.split(Array.from({ length }, (_, i) => first + i * stride(axis)))!;
  });
  return new DeviceMesh(shape, dimNames, coordinate, groups);
}
