// The machine and the software, for the head of a result; and how busy other processes kept the machine meanwhile.
import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { availableParallelism, cpus, loadavg, release, totalmem } from 'node:os';
import { native } from '../../dist/native.js';
import { round } from './statistics.mjs';

const extensions = /^(avx2|avx512f|avx512_bf16|amx_bf16|amx_tile|asimd|sve|bf16)$/;

export function describeMachine(python) {
  const flags = /^(?:flags|Features)\s*:\s*(.*)$/m.exec(readFileSync('/proc/cpuinfo', 'utf8'))?.[1] ?? '';
  const { version, isa, dnnl } = native.info();
  return {
    cpu: cpus()[0]?.model ?? 'unknown',
    extensions: flags.split(' ').filter((flag) => extensions.test(flag)),
    cores: availableParallelism(),
    memoryGigabytes: round(totalmem() / 1e9),
    kernel: release(),
    loadAverage: loadavg().map((load) => round(load)),
    node: process.versions.node,
    rankzero: { version, isa, dnnl },
    peer: python ? peerVersions(python) : undefined,
  };
}

function peerVersions(python) {
  const program =
    'import json, platform, torch, transformers as t; print(json.dumps(dict(python=platform.python_version(), torch=torch.__version__, transformers=t.__version__)))';
  return JSON.parse(execFileSync(python, ['-c', program], { encoding: 'utf8' }));
}

const ticksPerSecond = 100; // USER_HZ, the same on every Linux that Node runs on

/** Processor seconds: of all processes and the hypervisor, and of this one with all children that have ended. */
function processorSeconds() {
  const [user, nice, system, , , irq, softirq, steal] = readFileSync('/proc/stat', 'utf8')
    .slice(4)
    .trimStart()
    .split(' ', 8)
    .map(Number);
  const own = readFileSync('/proc/self/stat', 'utf8').split(') ')[1].split(' ').slice(11, 15).map(Number);
  const sum = (values) => values.reduce((total, value) => total + value, 0) / ticksPerSecond;
  return { all: sum([user, nice, system, irq, softirq, steal]), own: sum(own) };
}

/** Runs `work`; `otherCores` is how many cores everything that `work` did not start used meanwhile. */
export async function withOthersWatched(work) {
  const [before, start] = [processorSeconds(), performance.now()];
  const value = await work();
  const [after, seconds] = [processorSeconds(), (performance.now() - start) / 1000];
  const others = after.all - before.all - (after.own - before.own);
  return { value, otherCores: Math.max(0, Math.round((100 * others) / seconds) / 100) };
}

/** Waits until others use at most `cores` for two seconds, but not for ever. */
export async function waitForCalm(cores, seconds = 90) {
  const pause = () => new Promise((resolve) => setTimeout(resolve, 2000));
  for (const end = performance.now() + 1000 * seconds; performance.now() < end; )
    if ((await withOthersWatched(pause)).otherCores <= cores) return;
}
