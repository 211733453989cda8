// Which kernels of attention are checked and measured: those for Hopper, where they suit the device and the shape, and those for
// all devices.

/** Values of RANKZERO_ATTENTION. */
export const attentionKernels = ['hopper', 'mma'] as const;

/** Runs `work` with the kernels asked for. */
export function withAttention<T>(kernels: string, work: () => T): T {
  const before = process.env.RANKZERO_ATTENTION;
  process.env.RANKZERO_ATTENTION = kernels;
  try {
    return work();
  } finally {
    if (before === undefined) delete process.env.RANKZERO_ATTENTION;
    else process.env.RANKZERO_ATTENTION = before;
  }
}
