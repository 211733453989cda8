// Runs a program on ranks, ours by `rankzero run` and the peer's by torchrun, and collects what the ranks say. Programs print
// lines of JSON: { mark, rank, pid, … }. The time of a mark is when its line arrived here, in seconds since the command was
// started.
import { spawn } from 'node:child_process';
import { join } from 'node:path';
import { freePortPair } from '../../dist/distributed/ports.js';

const root = join(import.meta.dirname, '../..');
const killDelay = 10_000;

/** The environment without any rank's variables; which libraries of the GPU are used stays. */
function environment(extra) {
  const env = { ...process.env };
  for (const name of Object.keys(env))
    if (
      /^(RANK$|WORLD_SIZE|LOCAL_RANK|LOCAL_WORLD_SIZE|MASTER_|SLURM_|OMPI_|OMP_|RANKZERO_(?!ADDON|CUDA|CUBLASLT|NCCL|EMULATED)|VITEST|NODE_OPTIONS)/.test(
        name,
      )
    )
      delete env[name];
  return { ...env, RANKZERO_QUIET: '1', ...extra };
}

/** A program of bench/programs on `ranks` ranks. */
export function ourJob(program, ranks, args) {
  const argv = [
    join(root, 'dist/cli/main.js'),
    'run',
    '--nproc',
    ranks,
    join(root, 'bench/programs', program),
    ...args,
  ];
  return { file: process.execPath, argv: argv.map(String), env: {} };
}

/** A program of bench/peers, by torchrun, or alone without ranks (`ranks` 0). */
export async function peerJob(python, program, ranks, args, threads = 1) {
  const path = join(root, 'bench/peers', program);
  const launcher = ['-m', 'torch.distributed.run', '--nproc-per-node', ranks, '--master-port', await freePortPair()];
  const argv = [...(ranks ? launcher : []), path, ...args];
  return { file: python, argv: argv.map(String), env: { OMP_NUM_THREADS: String(threads) } };
}

/** Resolves to { marks, seconds } when the job has ended; fails with all it said unless it ended well. */
export function runJob({ file, argv, env }, { onMark, timeout = 1_800_000 } = {}) {
  const start = performance.now();
  const child = spawn(file, argv, { env: environment(env), stdio: ['ignore', 'pipe', 'pipe'] });
  const stop = () => child.kill('SIGTERM');
  process.once('exit', stop);
  const timers = [setTimeout(stop, timeout), setTimeout(() => child.kill('SIGKILL'), timeout + killDelay)];
  const marks = [];
  let said = '';
  let rest = '';
  child.stdout.setEncoding('utf8').on('data', (chunk) => {
    const at = (performance.now() - start) / 1000;
    const lines = (rest + chunk).split('\n');
    rest = lines.pop();
    for (const line of lines) {
      const mark = parseMark(line);
      if (!mark) said += `${line}\n`;
      else {
        marks.push({ ...mark, at });
        onMark?.(mark);
      }
    }
  });
  child.stderr.setEncoding('utf8').on('data', (chunk) => {
    said += chunk;
  });
  return new Promise((resolve, reject) => {
    child.once('error', reject);
    child.once('close', (code, signal) => {
      for (const timer of timers) clearTimeout(timer);
      process.off('exit', stop);
      if (code === 0) resolve({ marks, seconds: (performance.now() - start) / 1000 });
      else reject(new Error(`${[file, ...argv].join(' ')}\nended with ${signal ?? code}:\n${said}`));
    });
  });
}

/** A line of a program; undefined if it is no mark. The launcher writes `[rank 1] ` before the lines of ranks above 0. */
export function parseMark(line) {
  try {
    const mark = JSON.parse(line.replace(/^\[rank \d+\] /, ''));
    return typeof mark?.mark === 'string' ? mark : undefined;
  } catch {
    return undefined;
  }
}

/** The marks of that name, by rank. */
export function marksOf(marks, name) {
  return marks.filter((mark) => mark.mark === name).sort((a, b) => a.rank - b.rank);
}

/** When the last rank said so, in seconds after the launch. */
export function lastAt(marks, name) {
  return Math.max(...marksOf(marks, name).map((mark) => mark.at));
}
