// What `rankzero doctor` finds out about the machine without the addon: limits of the container, GPU driver, libraries.
import { spawnSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { availableParallelism, cpus, release, totalmem } from 'node:os';

const read = (path: string): string | undefined => {
  try {
    return readFileSync(path, 'utf8').trim();
  } catch {
    return undefined;
  }
};

export interface Machine {
  system: string;
  processor: string;
  cores: number;
  memoryBytes: number;
  /** CPUs that the control group allows; absent without a limit. */
  cgroupCpus?: number | undefined;
  cgroupMemoryBytes?: number | undefined;
}

/** Limits of control groups version 2, then 1. */
function cgroupLimits(): Pick<Machine, 'cgroupCpus' | 'cgroupMemoryBytes'> {
  const [quota, period] = (read('/sys/fs/cgroup/cpu.max') ?? '').split(' ');
  const quota1 = Number(read('/sys/fs/cgroup/cpu/cpu.cfs_quota_us') ?? -1);
  const period1 = Number(read('/sys/fs/cgroup/cpu/cpu.cfs_period_us') ?? 1e5);
  const cpu = Number(quota) > 0 ? Number(quota) / Number(period) : quota1 > 0 ? quota1 / period1 : undefined;
  const memory = Number(read('/sys/fs/cgroup/memory.max') ?? read('/sys/fs/cgroup/memory/memory.limit_in_bytes'));
  return { cgroupCpus: cpu, cgroupMemoryBytes: memory > 0 && memory < totalmem() ? memory : undefined };
}

export function describeMachine(): Machine {
  const name = /^PRETTY_NAME="?([^"\n]*)/m.exec(read('/etc/os-release') ?? '')?.[1] ?? 'Linux';
  return {
    system: `${name}, Linux ${release()}, ${process.arch}`,
    processor: cpus()[0]?.model.trim() ?? 'unknown',
    cores: availableParallelism(),
    memoryBytes: totalmem(),
    ...cgroupLimits(),
  };
}

export interface Accelerator {
  /** What was found, or why nothing is used. */
  cuda: string;
  nccl: string;
}

/** The GPU side: this build, the driver, and NCCL as the system's loader would find it. */
export function describeAccelerator(builtWithCuda: boolean): Accelerator {
  const driver = /Kernel Module\s+(?:for \S+\s+)?([\d.]+)/.exec(read('/proc/driver/nvidia/version') ?? '')?.[1];
  const seen = driver ? `NVIDIA driver ${driver}` : 'no NVIDIA driver';
  const cuda = builtWithCuda ? seen : `not used: this build is for CPU ranks only (${seen} on this machine)`;
  const inCache = spawnSync('/sbin/ldconfig', ['-p'], { encoding: 'utf8' }).stdout ?? '';
  const cached = /libnccl\.so\.2 .*=> (\S+)/.exec(inCache)?.[1];
  const paths = (process.env.LD_LIBRARY_PATH ?? '').split(':').filter(Boolean);
  const nccl = paths.map((path) => `${path}/libnccl.so.2`).find((path) => existsSync(path)) ?? cached;
  const searched = ['LD_LIBRARY_PATH', 'the cache of the system loader'].join(' and ');
  return { cuda, nccl: nccl ?? `not found (libnccl.so.2 in ${searched})` };
}

/** Files of shared libraries mapped into this process whose name has one of `names`. */
export function mappedLibraries(names: readonly string[]): string[] {
  const paths = (read('/proc/self/maps') ?? '').split('\n').map((line) => line.slice(line.indexOf('/')));
  return [...new Set(paths)].filter((path) => names.some((name) => path.split('/').at(-1)!.startsWith(name)));
}
