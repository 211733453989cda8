// Which kernels of attention are checked and measured: those for Hopper, where they suit the device and the shape, and those for
// all devices.
import { type AttentionKernels, native } from '../../native.ts';

/** Whether the device can have those for Hopper. */
export function isHopper(): boolean {
  return native.acceleratorInfo().devices[0]?.capability === '9.0';
}

/** Runs `work` with the kernels asked for. */
export function withAttention<T>(kernels: AttentionKernels, work: () => T): T {
  const before = native.cudaSetAttention(kernels);
  try {
    return work();
  } finally {
    native.cudaSetAttention(before);
  }
}
