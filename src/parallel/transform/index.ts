// Tensor parallelism (the transform API). The surface is fixed; the work is not done yet, and says so.
import type { Module } from '../../nn/module.ts';

/** Degrees and seed of a run, as torch.sagemaker.init takes them. */
export interface InitConfig {
  tensorParallelDegree?: number | undefined;
  hybridShardDegree?: number | undefined;
  randomSeed?: number | undefined;
}

export interface TransformOptions {
  loadStateDictFromRank0?: boolean | undefined;
}

/** Sets tensor-parallel and hybrid degrees. Not built yet: always throws. */
export function init(_config: InitConfig | string): void {
  throw new Error('init (tensor parallelism) is not built yet; use FSDP without transform');
}

/** Makes a model tensor-parallel. Not built yet: always throws. */
export function transform<M extends Module>(_model: M, _options: TransformOptions = {}): M {
  throw new Error('transform (tensor parallelism) is not built yet; use FSDP without transform');
}
