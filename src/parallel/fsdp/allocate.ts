// Memory for all buckets of a model before the first is filled.

import type { ProcessGroup } from '../../distributed/process_group.ts';
import type { DType } from '../../tensor/dtype.ts';
import { communicationStream, computeDevice, onStream } from '../../tensor/streams.ts';
import { Tensor } from '../../tensor/tensor.ts';
import type { BucketShape } from './bucket.ts';
import { type BucketMemory, canMap, GatheredMemory, MappedMemory, wholeTensors } from './memory.ts';

/** A bucket's memory, and what rank 0 of the source group fills directly: the flat buffer of every tensor-parallel part. */
export interface BucketPlace {
  memory: BucketMemory;
  region: Tensor | undefined;
}

/** `source`: ranks that rank 0 of it fills. One agreement of the ranks for each dtype and group, where memory is mapped. Collective. */
export function allocate(shapes: readonly BucketShape[], source: ProcessGroup): Map<BucketShape, BucketPlace> {
  return canMap(source) ? allocateMapped(shapes, source) : allocateShards(shapes);
}

function allocateMapped(shapes: readonly BucketShape[], source: ProcessGroup): Map<BucketShape, BucketPlace> {
  const master = new Map<BucketShape, Tensor>();
  const compute = new Map<BucketShape, Tensor>();
  for (const these of alike(shapes, ({ dtypes }) => dtypes.master)) {
    const { master: dtype } = these[0]!.dtypes;
    const numels = these.map(({ layout, groups }) => layout.numel * (source.size / groups.shard.size));
    const tensors = wholeTensors(source, numels, dtype, 'parameter');
    for (const [i, shape] of these.entries()) master.set(shape, tensors[i]!);
  }
  const cast = shapes.filter(({ dtypes }) => dtypes.compute !== dtypes.master);
  for (const these of alike(cast, ({ dtypes }) => dtypes.compute)) {
    const { dtypes, groups } = these[0]!;
    const numels = these.map(({ layout }) => layout.numel);
    const tensors = wholeTensors(groups.shard, numels, dtypes.compute, 'unshard');
    for (const [i, shape] of these.entries()) compute.set(shape, tensors[i]!);
  }
  const places = new Map<BucketShape, BucketPlace>();
  for (const shape of shapes) {
    const region = master.get(shape)!;
    const { numel } = shape.layout;
    const part = region.numel > numel ? (shape.groups.tensor?.rank ?? 0) : 0;
    const flat = region.slice(part * numel, [numel]);
    places.set(shape, { memory: new MappedMemory(shape.groups.shard, flat, compute.get(shape)), region });
  }
  return places;
}

function allocateShards(shapes: readonly BucketShape[]): Map<BucketShape, BucketPlace> {
  return onStream(communicationStream(), () => {
    const places = new Map<BucketShape, BucketPlace>();
    for (const shape of shapes) {
      const { layout, dtypes, groups } = shape;
      const shard = Tensor.empty([layout.shardNumel], dtypes.master, 'parameter', computeDevice());
      places.set(shape, { memory: new GatheredMemory(groups, shard, dtypes.compute), region: undefined });
    }
    return places;
  });
}

/** Buckets of one dtype and one shard group. */
function alike(shapes: readonly BucketShape[], dtypeOf: (shape: BucketShape) => DType): Iterable<BucketShape[]> {
  const found = new Map<string, BucketShape[]>();
  for (const shape of shapes) {
    const key = `${dtypeOf(shape)} ${shape.groups.shard.name}`;
    found.set(key, [...(found.get(key) ?? []), shape]);
  }
  return found.values();
}
