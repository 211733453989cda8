// The ops once more, with small operands, under compute-sanitizer, where that is on the machine: a tool a unit. What it slows down
// may wait longer in shared memory than kernels are allowed to (RANKZERO_BARRIER_SECONDS).
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { LineSplitter } from '../../distributed/lines.ts';
import { variables } from '../../environment.ts';
import type { PartOptions, Unit, UnitResult, WorkerLine, WorkerRequest } from './part.ts';

const tools = ['memcheck', 'racecheck', 'synccheck', 'initcheck'] as const;
const foundErrors = 77;
const mostLines = 40;

/** The tool's file; undefined: not on this machine. */
function findSanitizer(): string | undefined {
  const { CUDA_HOME, CUDA_PATH } = variables();
  const folders = [CUDA_HOME, CUDA_PATH, '/usr/local/cuda'];
  const files = folders.filter((folder) => folder !== undefined).map((folder) => join(folder, 'bin/compute-sanitizer'));
  return ['compute-sanitizer', ...files].find((file) => spawnSync(file, ['--version']).status === 0);
}

export async function sanitizerUnits(options: PartOptions): Promise<Unit[]> {
  const sanitizer = findSanitizer();
  if (sanitizer === undefined) {
    const unit = 'compute-sanitizer';
    const note = 'not on this machine: in no PATH, CUDA_HOME or /usr/local/cuda';
    return [{ name: unit, run: () => ({ unit, failures: [], note }) }];
  }
  return tools.map((tool) => ({ name: tool, run: () => underSanitizer(sanitizer, tool, options) }));
}

/** `--units memcheck,rms_norm`: that tool, with ops of these names. */
async function underSanitizer(sanitizer: string, tool: string, options: PartOptions): Promise<UnitResult> {
  const filter = options.filter.filter((text) => !tools.some((name) => name.includes(text)));
  const result: UnitResult = { unit: tool, failures: [], cases: 0 };
  const said: string[] = [];
  for (const part of ['ops', 'hopper'] as const) {
    const request: WorkerRequest = { ...options, filter, part, size: 'small', skip: [] };
    const worker = fileURLToPath(new URL('./worker.js', import.meta.url));
    const args = [
      '--tool',
      tool,
      '--error-exitcode',
      String(foundErrors),
      '--target-processes',
      'all',
      '--print-limit',
      '20',
    ];
    const child = spawn(sanitizer, [...args, process.execPath, worker, JSON.stringify(request)], {
      stdio: ['ignore', 'pipe', 'pipe'],
      env: { ...variables(), RANKZERO_BARRIER_SECONDS: '600' },
      detached: true,
    });
    const code = await listen(child, options.secondsLeft, (line) => {
      if (line.startsWith('{')) {
        const found = JSON.parse(line) as WorkerLine;
        if (!('result' in found)) return;
        result.cases! += found.result.cases ?? 0;
        result.failures.push(...found.result.failures.map((failure) => `${found.result.unit}: ${failure}`));
      } else if (line.startsWith('=========') && said.length < mostLines) said.push(line.slice(10).trimEnd());
    });
    if (code === 0) continue;
    result.failures.push(
      `${code === foundErrors ? 'errors' : `ended with ${code ?? 'its time'}`}:\n${said.join('\n')}`,
    );
    break;
  }
  return result;
}

/** Its exit code; undefined when it was ended with all of its children, since the time was over. */
function listen(child: ChildProcess, seconds: number, onLine: (line: string) => void): Promise<number | undefined> {
  const stop = (): void => {
    try {
      process.kill(-child.pid!, 'SIGKILL');
    } catch {}
  };
  let late = false;
  const timer = setTimeout(() => {
    late = true;
    stop();
  }, 1000 * Math.max(1, seconds));
  process.once('exit', stop);
  for (const stream of [child.stdout!, child.stderr!]) {
    const lines = new LineSplitter(onLine);
    stream.on('data', (chunk: Buffer) => lines.write(chunk));
  }
  return new Promise((resolve, reject) => {
    child.once('error', reject);
    child.once('close', (code) => {
      clearTimeout(timer);
      process.off('exit', stop);
      resolve(late ? undefined : (code ?? 1));
    });
  });
}
