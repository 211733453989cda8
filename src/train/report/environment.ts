// The machine a run had: for metrics.jsonl and report.html.
import { describeMachine } from '../../core/machine.ts';
import { packageVersion } from '../../core/version.ts';
import { native } from '../../native.ts';

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

/** What this process runs on. */
export function describeEnvironment(): Environment {
  const info = native.info();
  const machine = describeMachine();
  return {
    rankzero: packageVersion(),
    node: process.versions.node,
    system: machine.system,
    processor: machine.processor,
    cores: machine.cores,
    memoryBytes: machine.cgroupMemoryBytes ?? machine.memoryBytes,
    isa: info.isa,
    oneDNN: info.dnnl,
    threads: info.threads,
    cuda: info.cuda,
  };
}
