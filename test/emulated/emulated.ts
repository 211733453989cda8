// Programs on the emulated device: the addon and the kernel tests of build/emulated, which CMake builds where CUDA's headers are.
import { execFileSync, spawn } from 'node:child_process';
import { existsSync, realpathSync } from 'node:fs';
import { join } from 'node:path';

const root = join(import.meta.dirname, '../..');
const build = join(root, 'build');
export const emulated: string = join(build, 'emulated');

/** Whether the build found CUDA's headers; without them there is nothing to test here. */
export const available: boolean = existsSync(join(build, 'test/emulated/emulator/cmake_install.cmake'));

/** Orders of threads and of streams. */
export const seeds: readonly number[] = [1, 2, 3, 4, 5];

export function buildEmulated(): void {
  execFileSync('cmake', ['--build', build, '--target', 'emulated', '--parallel', '2'], {
    cwd: root,
    stdio: ['ignore', 'pipe', 'pipe'],
    maxBuffer: 64 << 20,
  });
}

function variables(seed: number): Record<string, string> {
  return {
    RANKZERO_EMULATED_SEED: String(seed),
    RANKZERO_CUDA_QUEUE: '32', // the emulator's queues hold 64
    RANKZERO_CUDA_DRIVER_PATH: join(emulated, 'libcuda.so.1'),
    RANKZERO_CUBLASLT_PATH: join(emulated, 'libcublasLt.so.13'),
    ASAN_OPTIONS: 'detect_leaks=0',
  };
}

export function environment(seed: number, extra: Record<string, string> = {}): NodeJS.ProcessEnv {
  return { ...process.env, ...variables(seed), ...extra };
}

export interface Outcome {
  code: number | null;
  stdout: string;
  stderr: string;
}

/** A program that takes longer than `timeout` is killed; its output then ends with `timed out`. */
export function run(
  file: string,
  args: readonly string[],
  env: NodeJS.ProcessEnv,
  timeout = 240_000,
): Promise<Outcome> {
  return new Promise((resolve, reject) => {
    const child = spawn(file, args, { env, cwd: root, stdio: ['ignore', 'pipe', 'pipe'] });
    const outcome = { stdout: '', stderr: '' };
    const timer = setTimeout(() => {
      outcome.stdout += '\ntimed out\n';
      child.kill('SIGKILL');
    }, timeout);
    child.stdout.on('data', (data) => {
      outcome.stdout += data;
    });
    child.stderr.on('data', (data) => {
      outcome.stderr += data;
    });
    child.on('error', reject);
    child.on('close', (code) => {
      clearTimeout(timer);
      resolve({ ...outcome, code });
    });
  });
}

/** For Node with the emulated addon and NCCL. An addon under AddressSanitizer needs the library before everything else. */
export function nodeVariables(seed: number): Record<string, string> {
  const asan = execFileSync('c++', ['-print-file-name=libasan.so'], { encoding: 'utf8' }).trim();
  return {
    ...variables(seed),
    LD_PRELOAD: realpathSync(asan),
    RANKZERO_ADDON: join(emulated, 'rankzero.node'),
    RANKZERO_NCCL_PATH: join(emulated, 'libnccl.so.2'),
    RANKZERO_GLOO_PATH: join(build, 'Release/rankzero_gloo.so'),
  };
}

export function runNode(
  args: readonly string[],
  seed: number,
  extra: Record<string, string> = {},
  timeout?: number,
): Promise<Outcome> {
  return run(process.execPath, args, { ...process.env, ...nodeVariables(seed), ...extra }, timeout);
}
