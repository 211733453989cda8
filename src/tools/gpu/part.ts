// What `rankzero doctor --gpu` consists of: parts of units. A part runs in a process of its own, since a fault of the device
// ends all work of its process; a unit is what is named when that happens.
import type { Size } from './draw.ts';

/** One measured quantity. */
export interface Measure {
  name: string;
  value: number;
  unit: string;
  /** A share of something that cannot be passed: `0.9 of copy bandwidth`. */
  fraction?: number | undefined;
  of?: string | undefined;
  /** Median device time of one run, and the spread of the middle half, relative. */
  milliseconds?: number | undefined;
  spread?: number | undefined;
}

export interface UnitResult {
  unit: string;
  /** What is wrong; empty when nothing is. */
  failures: string[];
  /** Cases of a check, and the greatest error of each dtype. */
  cases?: number | undefined;
  errors?: Record<string, number> | undefined;
  /** Why nothing was run. */
  note?: string | undefined;
  measures?: Measure[] | undefined;
}

export interface PartOptions {
  seed: number;
  size: Size;
  /** Dense bfloat16 TFLOP/s of the device; undefined: unknown. */
  peak?: number | undefined;
  /** Of device copies, GB/s, where it was measured before. */
  copyBandwidth?: number | undefined;
  /** Until the time for the part is over. */
  secondsLeft: number;
  /** Names of units to run must contain one of these; empty: all. */
  filter: readonly string[];
}

export interface Unit {
  name: string;
  run: () => UnitResult | Promise<UnitResult>;
}

export type PartName =
  | 'ops'
  | 'allocator'
  | 'collectives'
  | 'bandwidth'
  | 'gemm'
  | 'kernels'
  | 'attention'
  | 'step'
  | 'load'
  | 'hopper'
  | 'hopper_attention'
  | 'hopper_step'
  | 'sanitizers';

export interface Part {
  /** For the heading. */
  title: string;
  /** A check passes or fails; a measurement gives numbers. */
  kind: 'check' | 'measurement';
  /** After so many seconds without a unit's end its process is killed. */
  patience: Record<Size, number>;
  /** Each of its units has a process of its own. */
  apart?: boolean | undefined;
  units: (options: PartOptions) => Promise<Unit[]>;
}

// What is most likely to take the device down comes last.
export const parts: Record<PartName, Part> = {
  ops: {
    title: 'Every op against the CPU',
    kind: 'check',
    patience: { small: 60, full: 120 },
    units: async (options) => (await import('./ops.ts')).opUnits(options),
  },
  allocator: {
    title: 'Memory of the device',
    kind: 'check',
    patience: { small: 60, full: 60 },
    units: async (options) => (await import('./allocator.ts')).allocatorUnits(options),
  },
  collectives: {
    title: 'Collectives of as many ranks as there are devices',
    kind: 'check',
    patience: { small: 60, full: 90 },
    units: async (options) => (await import('./collectives.ts')).collectiveUnits(options),
  },
  bandwidth: {
    title: 'Bandwidths',
    kind: 'measurement',
    patience: { small: 60, full: 60 },
    units: async (options) => (await import('./measure/bandwidth.ts')).bandwidthUnits(options),
  },
  gemm: {
    title: 'GEMMs',
    kind: 'measurement',
    patience: { small: 60, full: 60 },
    units: async (options) => (await import('./measure/gemm.ts')).gemmUnits(options),
  },
  kernels: {
    title: 'Kernels that memory bounds',
    kind: 'measurement',
    patience: { small: 60, full: 60 },
    units: async (options) => (await import('./measure/kernels.ts')).kernelUnits(options),
  },
  attention: {
    title: 'Attention',
    kind: 'measurement',
    patience: { small: 60, full: 60 },
    units: async (options) => (await import('./measure/attention.ts')).attentionUnits(options, 'mma'),
  },
  step: {
    title: 'A training step of a 1B-class Llama',
    kind: 'measurement',
    patience: { small: 120, full: 150 },
    apart: true,
    units: async (options) => (await import('./measure/step.ts')).stepUnits(options, 'mma'),
  },
  load: {
    title: 'From a file to shards on the device',
    kind: 'measurement',
    patience: { small: 60, full: 120 },
    units: async (options) => (await import('./measure/load.ts')).loadUnits(options),
  },
  hopper: {
    title: 'Attention by the kernels for Hopper against the CPU',
    kind: 'check',
    patience: { small: 60, full: 60 },
    units: async (options) => (await import('./ops.ts')).hopperUnits(options),
  },
  hopper_attention: {
    title: 'Attention by the kernels for Hopper',
    kind: 'measurement',
    patience: { small: 60, full: 60 },
    units: async (options) => (await import('./measure/attention.ts')).attentionUnits(options, 'hopper'),
  },
  hopper_step: {
    title: 'A training step of a 1B-class Llama, attention by the kernels for Hopper',
    kind: 'measurement',
    patience: { small: 120, full: 150 },
    apart: true,
    units: async (options) => (await import('./measure/step.ts')).stepUnits(options, 'hopper'),
  },
  sanitizers: {
    title: 'Every op under compute-sanitizer',
    kind: 'check',
    patience: { small: 600, full: 600 },
    units: async (options) => (await import('./sanitizers.ts')).sanitizerUnits(options),
  },
};

export const partNames: readonly PartName[] = Object.keys(parts) as PartName[];

export function isPartName(name: string): name is PartName {
  return Object.hasOwn(parts, name);
}

// Between a worker and the process that started it.

export interface WorkerRequest extends PartOptions {
  part: PartName;
  /** Units that another process has done, or died of. */
  skip: readonly string[];
}

export type WorkerLine = { units: string[] } | { begin: string } | { result: UnitResult; seconds: number };

/** The worker's exit code when a fresh process must go on: the device is lost, or units have processes of their own. */
export const goOnCode = 9;
