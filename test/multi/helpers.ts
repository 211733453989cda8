// Runs a fixture on several ranks through the compiled launcher, in a process of its own, and collects what each rank says.
import { type ChildProcess, spawn } from 'node:child_process';
import { existsSync, readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { join } from 'node:path';

const root = join(import.meta.dirname, '../..');

export interface RanksResult {
  code: number;
  /** Of each rank, lines joined. */
  stdout: string[];
  stderr: string[];
  failure: { rank: number; message: string } | undefined;
  milliseconds: number;
}

export interface RanksOptions {
  env?: Record<string, string>;
  args?: readonly string[];
  /** Milliseconds after which the launcher is killed, and its ranks with it. */
  timeout?: number;
  /** Called with each line while the ranks run. */
  onLine?: (rank: number, line: string, launcher: ChildProcess) => void;
}

export const fixture = (name: string): string => join(import.meta.dirname, 'fixtures', name);

/** The environment of the test without any rank's variables. */
export function cleanEnvironment(extra: Record<string, string> = {}): NodeJS.ProcessEnv {
  const env = { ...process.env };
  for (const name of Object.keys(env)) {
    if (/^(RANK|WORLD_SIZE|LOCAL_RANK|LOCAL_WORLD_SIZE|MASTER_|SLURM_|OMPI_|RANKZERO_|VITEST|NODE_OPTIONS)/.test(name))
      delete env[name];
  }
  return { ...env, RANKZERO_QUIET: '1', ...extra };
}

/** Resolves when all ranks have ended; fails only if the launcher itself does. */
export function runRanks(nproc: number, script: string, options: RanksOptions = {}): Promise<RanksResult> {
  if (!existsSync(join(root, 'dist/distributed/launcher.js'))) throw new Error('dist/ is missing: npm run build');
  const start = Date.now();
  const launcher = spawn(process.execPath, [fixture('launch.mjs'), String(nproc), script, ...(options.args ?? [])], {
    env: cleanEnvironment(options.env),
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  const stdout = Array.from({ length: nproc }, () => '');
  const stderr = Array.from({ length: nproc }, () => '');
  let failure: RanksResult['failure'];
  let own = '';
  let rest = '';
  launcher.stdout.setEncoding('utf8').on('data', (chunk: string) => {
    const lines = (rest + chunk).split('\n');
    rest = lines.pop()!;
    for (const text of lines) {
      const message = JSON.parse(text) as
        | { rank: number; stream: 'stdout' | 'stderr'; line: string }
        | { failure: RanksResult['failure'] };
      if (!('line' in message)) {
        failure = message.failure;
      } else {
        (message.stream === 'stdout' ? stdout : stderr)[message.rank] += message.line;
        options.onLine?.(message.rank, message.line, launcher);
      }
    }
  });
  launcher.stderr.setEncoding('utf8').on('data', (chunk: string) => {
    own += chunk;
  });
  const timer = setTimeout(() => launcher.kill('SIGKILL'), options.timeout ?? 60_000);
  return new Promise((resolve, reject) => {
    launcher.once('close', (code, signal) => {
      clearTimeout(timer);
      const milliseconds = Date.now() - start;
      if (own !== '' || (signal && !options.onLine)) {
        reject(
          new Error(
            `the launcher ended by ${signal ?? code} after ${milliseconds} ms: ${own}\n${stdout.join('')}${stderr.join('')}`,
          ),
        );
      } else {
        resolve({ code: code ?? -1, stdout, stderr, failure, milliseconds });
      }
    });
  });
}

/** Fails with everything the ranks said unless the job ended well. */
export async function expectRanks(nproc: number, script: string, options: RanksOptions = {}): Promise<RanksResult> {
  const result = await runRanks(nproc, script, options);
  if (result.code !== 0) {
    throw new Error(
      `exit code ${result.code}: ${JSON.stringify(result.failure)}\n${result.stderr.join('')}${result.stdout.join('')}`,
    );
  }
  return result;
}

export function isAlive(pid: number): boolean {
  try {
    return !/^\d+ \(.*\) [ZX]/.test(readFileSync(`/proc/${pid}/stat`, 'utf8'));
  } catch {
    return false;
  }
}

/** Waits until no process of `pids` is alive. */
export async function waitForDeath(pids: readonly number[], milliseconds: number): Promise<void> {
  const deadline = Date.now() + milliseconds;
  while (pids.some(isAlive)) {
    if (Date.now() > deadline) throw new Error(`processes ${pids.filter(isAlive)} are alive after ${milliseconds} ms`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

/** Processes that hold shared memory of rankzero, and how many segments. */
export function sharedMemoryHolders(): Map<number, number> {
  const holders = new Map<number, number>();
  for (const pid of readdirSync('/proc').filter((name) => /^\d+$/.test(name))) {
    try {
      const folder = `/proc/${pid}/fd`;
      const count = readdirSync(folder).filter((fd) =>
        readlinkSync(`${folder}/${fd}`).startsWith('/memfd:rankzero'),
      ).length;
      if (count > 0) holders.set(Number(pid), count);
    } catch {
      // Gone, or another user's.
    }
  }
  return holders;
}

export interface ProcessResult {
  code: number | null;
  signal: NodeJS.Signals | null;
  stdout: string;
  stderr: string;
}

/** One process with an environment of its own, as torchrun or Slurm would start it; killed after 30 s. */
export function runProcess(
  argv: readonly string[],
  env: Record<string, string>,
  onSpawn?: (child: ChildProcess) => void,
): Promise<ProcessResult> {
  const child = spawn(process.execPath, argv, { env: cleanEnvironment(env), stdio: ['ignore', 'pipe', 'pipe'] });
  onSpawn?.(child);
  let stdout = '';
  let stderr = '';
  child.stdout.setEncoding('utf8').on('data', (chunk: string) => {
    stdout += chunk;
  });
  child.stderr.setEncoding('utf8').on('data', (chunk: string) => {
    stderr += chunk;
  });
  const timer = setTimeout(() => child.kill('SIGKILL'), 30_000);
  return new Promise((resolve) => {
    child.once('close', (code, signal) => {
      clearTimeout(timer);
      resolve({ code, signal, stdout, stderr });
    });
  });
}

/** Private and shared memory of a process in bytes; pages that two processes map count half. 0 when it is gone. */
export function memoryOf(pid: number): number {
  try {
    const text = readFileSync(`/proc/${pid}/smaps_rollup`, 'utf8');
    const kilobytes = (key: string): number => Number(new RegExp(`^${key}:\\s+(\\d+)`, 'm').exec(text)![1]);
    return 1024 * (kilobytes('Pss_Anon') + kilobytes('Pss_Shmem'));
  } catch {
    return 0;
  }
}
