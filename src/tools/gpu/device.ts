// The device under test: whether it still answers, and what it could do at best.
import { native } from '../../native.ts';

/** After these errors every call of the process fails: its context is gone. */
export function isDeviceLost(error: unknown): boolean {
  const code = (error as { code?: unknown }).code;
  return code === 'ERR_DEVICE' || code === 'ERR_CUDA';
}

/** Runs `work` with a setting of the device; `set` returns what it was before. */
export function withSetting<V, T>(set: (value: V) => V, value: V, work: () => T): T {
  const before = set(value);
  try {
    return work();
  } finally {
    set(before);
  }
}

// Dense bfloat16 with float32 accumulation, TFLOP/s, by the vendor's datasheets. First match.
const peaks: readonly [pattern: RegExp, peak: number][] = [
  [/H100 PCIe/, 756],
  [/H100 NVL/, 835],
  [/H100|H200|H800|GH200/, 989],
  [/B200|GB200/, 2250],
  [/A100|A800/, 312],
  [/L40S/, 362],
  [/RTX 6000 Ada|L40\b/, 181],
  [/A10\b/, 125],
];

export function peakOf(name: string): number | undefined {
  return peaks.find(([pattern]) => pattern.test(name))?.[1];
}

export function deviceName(): string {
  return native.acceleratorInfo().devices[0]?.name ?? 'no device';
}
