// What FSDP can be asked for. How a strategy becomes groups: groups.ts.
import type { DeviceMesh } from '../../distributed/device_mesh.ts';
import type { ProcessGroup } from '../../distributed/process_group.ts';
import type { Module } from '../../nn/module.ts';
import type { FloatDType } from '../../tensor/dtype.ts';
import type { WrapPolicy } from './wrap_policy.ts';

/** @internal The one list of them: types, options and flags come from it. */
export const shardingStrategies = [
  'FULL_SHARD',
  'SHARD_GRAD_OP',
  'NO_SHARD',
  'HYBRID_SHARD',
  '_HYBRID_SHARD_ZERO2',
] as const;

/** As in PyTorch FSDP1. */
export type ShardingStrategy = (typeof shardingStrategies)[number];

/** dtypes of forward and backward, of the gradient reduction, and of buffers. Masters stay float32. */
export interface MixedPrecision {
  /** Parameters in forward and backward, and on the wire. */
  paramDtype?: FloatDType | undefined;
  /** Gradients while they are reduced. Default: paramDtype, else the parameters' own. */
  reduceDtype?: FloatDType | undefined;
  bufferDtype?: FloatDType | undefined;
}

/** Bytes of weights that have reached the shards of this rank, while a model is wrapped. */
export interface SyncProgress {
  /** Unit just finished, e.g. `model.layers.3`. */
  unit: string;
  bytes: number;
  totalBytes: number;
  seconds: number;
}

export interface FsdpOptions {
  /** Which submodules become units. Default: the model's decoder layers, embedding and head (transformerAutoWrapPolicy). */
  autoWrapPolicy?: WrapPolicy | undefined;
  /** Default FULL_SHARD. */
  shardingStrategy?: ShardingStrategy | undefined;
  /** Ranks of a shard group for the hybrid strategies. Default: the ranks of this host. */
  hybridShardDegree?: number | undefined;
  /** Shard group, or [shard, replicate] for the hybrid strategies. Default: all ranks. */
  processGroup?: ProcessGroup | readonly [ProcessGroup, ProcessGroup] | undefined;
  /** One axis: the shard group. Two axes, for the hybrid strategies: replicate, then shard, as in PyTorch. */
  deviceMesh?: DeviceMesh | undefined;
  mixedPrecision?: MixedPrecision | undefined;
  /** Send rank 0's weights and buffers to the others while wrapping. */
  syncModuleStates?: boolean | undefined;
  /** Materialises one module's own parameters; called for each module of a unit that has parameters on meta. */
  paramInitFn?: ((module: Module) => void) | undefined;
  /** Called with each unit's module when its parameters have been materialised (re-ties tied weights). */
  postParamInitFn?: ((module: Module) => void) | undefined;
  /**
   * Submodules whose parameters stay whole on each rank, and its own: moved to its device, but not sharded, not sent, gradients
   * not reduced. With syncModuleStates their buffers are rank 0's, as all buffers are.
   */
  ignoredModules?: readonly Module[] | undefined;
  /** Gather the next unit while this one computes. Default true. */
  forwardPrefetch?: boolean | undefined;
  /** Gather the previous unit while this one's backward computes. Default true. */
  backwardPrefetch?: boolean | undefined;
  /**
   * Accepted for compatibility. Memory is given back in the order of enqueueing, and reused behind events on the streams: at most two
   * units and the root are gathered at a time, however far the program is ahead of the device, and it is never made to wait.
   */
  limitAllGathers?: boolean | undefined;
  onProgress?: ((progress: SyncProgress) => void) | undefined;
}
