// What `rankzero doctor` finds out about the machine without the addon: limits of the container, the GPU's kernel module, libraries.
import { readFileSync } from 'node:fs';
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

/** The version of the NVIDIA kernel module on this machine, whatever the addon was built with. */
export function nvidiaModule(): string | undefined {
  return /Kernel Module\s+(?:for \S+\s+)?([\d.]+)/.exec(read('/proc/driver/nvidia/version') ?? '')?.[1];
}

/** Files of shared libraries mapped into this process whose name has one of `names`. */
export function mappedLibraries(names: readonly string[]): string[] {
  const paths = (read('/proc/self/maps') ?? '').split('\n').map((line) => line.slice(line.indexOf('/')));
  return [...new Set(paths)].filter((path) => names.some((name) => path.split('/').at(-1)!.startsWith(name)));
}
