// Which kernels of attention are checked and measured: those for Hopper, where they suit the device and the shape, and those for
// all devices.
import { type AttentionKernels, native } from '../../native.ts';

export const attentionKernels: readonly AttentionKernels[] = ['hopper', 'mma'];

/** Runs `work` with the kernels asked for. */
export function withAttention<T>(kernels: AttentionKernels, work: () => T): T {
  const before = native.cudaSetAttention(kernels);
  try {
    return work();
  } finally {
    native.cudaSetAttention(before);
  }
}
