// Memory of this rank's tensors, as the allocator counts it.
import { type NativeMemoryStats, native } from '../native.ts';
import { deviceNumber } from './tensor.ts';

export type { NativeMemoryStats as MemoryStats } from '../native.ts';

export function memoryStats(device: 'cpu' | 'cuda' = 'cpu'): NativeMemoryStats {
  return native.memoryStats(deviceNumber(device));
}

export function resetPeakMemoryStats(): void {
  native.memoryResetPeak();
}

/** Returns cached blocks to the system. Waits for all streams. */
export function emptyCache(): void {
  native.memoryTrim();
}
