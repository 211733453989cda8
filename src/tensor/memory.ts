// Memory of this rank's tensors, as the allocator counts it.
import { type NativeMemoryStats, native } from '../native.ts';

export type { NativeMemoryStats as MemoryStats } from '../native.ts';

export function memoryStats(): NativeMemoryStats {
  return native.memoryStats();
}

export function resetPeakMemoryStats(): void {
  native.memoryResetPeak();
}

/** Returns cached blocks to the system. Waits for all streams. */
export function emptyCache(): void {
  native.memoryTrim();
}
