// `rankzero doctor`: machine, Node, addon, libraries, GPU, what connects hosts, and a numeric self-test. Exit code 1 when something
// is wrong.
import { fileURLToPath } from 'node:url';
import { Command } from 'commander';
import { formatBytes } from '../core/format.ts';
import { describeMachine, mappedLibraries } from '../core/machine.ts';
import { packageVersion } from '../core/version.ts';
import type { NativeAccelerator, NativeLibrary } from '../native.ts';
import { partNames } from '../tools/gpu/part.ts';
import { acceleratorRows, describeLibrary } from './accelerator.ts';
import type { GpuOptions } from './doctor_gpu.ts';
import type { HostsOptions } from './doctor_hosts.ts';
import { ownSpelling } from './launch_flags.ts';
import { runSelfTest, type SelfTestResult } from './self_test.ts';

const examples = `
Examples:
  rankzero doctor
  rankzero doctor --json > doctor.json     (to attach to an issue)
  rankzero doctor --gpu --out gpu          (proves and measures the GPU, with gpu/doctor-gpu.json; minutes)
  rankzero doctor --gpu --only ops --units attention,rms_norm
  rankzero doctor --hosts --nnodes 2 --node-rank 0 --master-address host0 --path /data     (and on host 1: --node-rank 1)
  srun --ntasks-per-node 1 rankzero doctor --hosts
`;

interface Addon {
  path: string;
  isa: string;
  threads: number;
  oneDNN: string;
  libraries: string[];
}

interface Diagnosis {
  rankzero: string;
  node: string;
  machine: ReturnType<typeof describeMachine>;
  addon?: Addon;
  /** Why the addon does not load. */
  addonError?: string;
  accelerator?: NativeAccelerator;
  /** The module that connects hosts. */
  engine?: NativeLibrary;
  selfTest: SelfTestResult[];
  ok: boolean;
}

/** Two processes over shared memory, started as a job is. */
async function allReduceTest(): Promise<SelfTestResult> {
  const { launch } = await import('../distributed/launcher.ts');
  const script = fileURLToPath(new URL('./doctor_worker.js', import.meta.url));
  const { code, failure } = await launch({ nproc: 2, script, onLine: () => {} });
  return { name: 'all-reduce of 2 ranks', error: 0, tolerance: 0, ok: code === 0, failure: failure?.message };
}

async function diagnose(): Promise<Diagnosis> {
  const found = { rankzero: packageVersion(), node: process.versions.node, machine: describeMachine() };
  try {
    const { native } = await import('../native.ts');
    const info = native.info();
    const selfTest = [...runSelfTest(native), await allReduceTest()];
    const addon: Addon = {
      path: mappedLibraries(['rankzero'])[0] ?? 'unknown',
      isa: info.isa,
      threads: info.threads,
      oneDNN: info.dnnl,
      libraries: mappedLibraries(['libdnnl', 'libgomp', 'libcuda', 'libnccl']),
    };
    const ok = selfTest.every((test) => test.ok);
    return { ...found, addon, accelerator: native.acceleratorInfo(), engine: native.engineInfo(), selfTest, ok };
  } catch (error) {
    const addonError = (error as Error).message;
    return { ...found, addonError, selfTest: [], ok: false };
  }
}

/** The module, or every place where it was looked for and how to come by it. Only jobs of several hosts need it. */
export function describeEngine(engine: NativeLibrary): string {
  const text = describeLibrary(engine);
  if (engine.path !== '' && engine.problem === '') return text;
  return `${text}\nneeded by jobs of several hosts: apt-get install -y libgloo-dev (Fedora: dnf install -y gloo-devel), then npm rebuild rankzero`;
}

function print({ machine, addon, accelerator, engine, ...d }: Diagnosis): void {
  const row = (name: string, value: unknown): void => console.log(`  ${name.padEnd(12)} ${value}`);
  const limit = machine.cgroupCpus === undefined ? '' : `, limited to ${machine.cgroupCpus} by its control group`;
  const memoryLimit =
    machine.cgroupMemoryBytes === undefined ? '' : `, limited to ${formatBytes(machine.cgroupMemoryBytes)}`;
  console.log(`rankzero ${d.rankzero}, Node ${d.node}\n\nMachine`);
  row('system', machine.system);
  row('processor', machine.processor);
  row('cores', `${machine.cores}${limit}`);
  row('memory', `${formatBytes(machine.memoryBytes)}${memoryLimit}`);
  console.log('\nAddon');
  if (addon) {
    row('file', addon.path);
    row('kernels', `${addon.isa}, ${addon.threads} thread${addon.threads === 1 ? '' : 's'}`);
    row('oneDNN', addon.oneDNN);
    for (const library of addon.libraries) row('library', library);
  } else {
    console.log(d.addonError?.replace(/^/gm, '  '));
  }
  if (accelerator) {
    console.log('\nGPU');
    for (const [name, text] of acceleratorRows(accelerator)) row(name, text.replaceAll('\n', `\n${' '.repeat(15)}`));
  }
  if (engine) {
    console.log('\nSeveral hosts');
    row('Gloo', describeEngine(engine).replaceAll('\n', `\n${' '.repeat(15)}`));
  }
  if (d.selfTest.length > 0) console.log('\nSelf-test');
  for (const test of d.selfTest) {
    const exact =
      test.tolerance === 0
        ? 'exact'
        : `error ${test.error.toExponential(1)}, at most ${test.tolerance.toExponential(0)}`;
    const error = test.failure ?? exact;
    console.log(`  ${test.ok ? 'ok    ' : 'FAILED'} ${test.name.padEnd(24)} ${error}`);
  }
  console.log(d.ok ? '\nAll is well.' : '\nSomething is wrong: see above.');
}

const hostsFlags = ['path', 'nnodes', 'nodeRank', 'masterAddress', 'masterPort'];

export async function doctorCommand(argv: string[]): Promise<number> {
  const command = new Command('rankzero doctor')
    .description('Checks this machine and this installation, and computes small examples on them.')
    .option('--json', 'print the findings as JSON')
    .option('--hosts', 'check how the hosts of a job reach each other, and how fast')
    .option('--gpu', 'check every op, collective and the memory of the GPU, and measure its speed')
    .optionsGroup('With --gpu:')
    .option('--only <parts>', `of ${partNames.join(', ')}; or checks, measurements`)
    .option('--units <texts>', 'only what has one of these in its name, such as the op')
    .option('--size <full|small>', 'small: tiny shapes, to see that everything runs (default: full)')
    .option('--seed <n>', 'of the random inputs (default: another one each time)')
    .option('--time-limit <seconds>', 'what has not begun by then is left out (default: 3600)')
    .option('--peak <TFLOP/s>', "the device's dense bfloat16 rate, where it is not known")
    .option('--out <dir>', 'keep text and JSON there, as they come')
    .optionsGroup('With --hosts, which is started on each of them:')
    .option('--path <folder>', 'whether it is the same folder on all hosts')
    .option('--nnodes <n>', 'hosts (default: as the launcher around it says)')
    .option('--node-rank <r>', 'the number of this one, from 0')
    .option('--master-address <host[:port]>', 'host 0, as the others reach it')
    .option('--master-port <port>', 'of the launchers; the store uses the next (default: 29500)')
    .addHelpText('after', examples);
  const { gpu, hosts, ...options } = command
    .parse(argv.map(ownSpelling), { from: 'user' })
    .opts<GpuOptions & HostsOptions & { gpu?: boolean; hosts?: boolean }>();
  const { json } = options;
  const stray = Object.keys(options).find((name) => {
    const group = hostsFlags.includes(name) ? hosts : gpu;
    return name !== 'json' && !group;
  });
  if (stray !== undefined) {
    const flag = `--${stray.replace(/[A-Z]/g, (c) => `-${c.toLowerCase()}`)}`;
    console.error(`rankzero doctor: ${flag} needs ${hostsFlags.includes(stray) ? '--hosts' : '--gpu'}`);
    return 2;
  }
  if (hosts && gpu) {
    console.error('rankzero doctor: --hosts and --gpu are two checks: ask for one of them');
    return 2;
  }
  if (gpu) return (await import('./doctor_gpu.ts')).doctorGpu(options);
  if (hosts) return (await import('./doctor_hosts.ts')).doctorHosts(options);
  const diagnosis = await diagnose();
  if (json) console.log(JSON.stringify(diagnosis, null, 2));
  else print(diagnosis);
  return diagnosis.ok ? 0 : 1;
}
