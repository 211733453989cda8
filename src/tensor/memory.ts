// Memory of this rank's tensors, as the allocator counts it.
import { type MemoryByKind, native } from '../native.ts';

/** Bytes. */
export interface MemoryStats {
  /** In use, by kind. */
  current: MemoryByKind;
  /** Highest since the start or the last reset, by kind. */
  peak: MemoryByKind;
  /** In use, all kinds. */
  total: number;
  totalPeak: number;
  /** Held from the system, cached blocks included. */
  reserved: number;
  /** Tensors that are not disposed. */
  liveHandles: number;
}

export function memoryStats(): MemoryStats {
  return native.memoryStats();
}

export function resetPeakMemoryStats(): void {
  native.memoryResetPeak();
}

/** Returns cached blocks to the system. Waits for all streams. */
export function emptyCache(): void {
  native.memoryTrim();
}
