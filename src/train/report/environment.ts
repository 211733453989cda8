// The machine a run had: for metrics.jsonl, report.html and `rankzero doctor`.
import { readFileSync } from 'node:fs';
import { availableParallelism, cpus, release, totalmem } from 'node:os';
import { native, packageRoot } from '../../native.ts';

export interface Environment {
  rankzero: string;
  node: string;
  system: string;
  processor: string;
  cores: number;
  memoryBytes: number;
  /** Instruction set of the SIMD kernels. */
  isa: string;
  oneDNN: string;
  /** Threads of one rank. */
  threads: number;
  cuda: boolean;
}

/** Version of this package. */
export function packageVersion(): string {
  return (JSON.parse(readFileSync(`${packageRoot}/package.json`, 'utf8')) as { version: string }).version;
}

function distribution(): string {
  try {
    return /^PRETTY_NAME="?([^"\n]*)/m.exec(readFileSync('/etc/os-release', 'utf8'))?.[1] ?? 'Linux';
  } catch {
    return 'Linux';
  }
}

/** What this process runs on. */
export function describeEnvironment(): Environment {
  const info = native.info();
  return {
    rankzero: packageVersion(),
    node: process.versions.node,
    system: `${distribution()}, Linux ${release()}, ${process.arch}`,
    processor: cpus()[0]?.model.trim() ?? 'unknown',
    cores: availableParallelism(),
    // Without a limit constrainedMemory is 0 or huge.
    memoryBytes: Math.min(process.constrainedMemory() || Infinity, totalmem()),
    isa: info.isa,
    oneDNN: info.dnnl,
    threads: info.threads,
    cuda: info.cuda,
  };
}
