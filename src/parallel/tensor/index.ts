// Tensor parallelism: init, state and transform, after torch.sagemaker.
export { type InitConfig, init, type ParallelState, state } from '../../distributed/state.ts';
export type { TensorParallel } from './context.ts';
export { type TransformOptions, transform } from './transform.ts';
