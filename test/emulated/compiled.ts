// The CUDA backend as nvcc compiles it, for sm_90a: its kernels, and what its launchers launch.
import { execFileSync, spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { deviceCode, type Kernel } from './cubin.ts';

const root = join(import.meta.dirname, '../..');
const build = join(root, 'build');

/** Whether nvcc is here; without it there is nothing to look at. */
export const available: boolean = spawnSync('nvcc', ['--version']).status === 0;

/** A folder with device code of this checkout: the addon's own if CUDA is compiled into it for one architecture, else another. */
function folder(): string {
  const cache = join(build, 'CMakeCache.txt');
  const text = existsSync(cache) ? readFileSync(cache, 'utf8') : '';
  const settings = /^RANKZERO_CUDA:STRING=on$/m.test(text) && /^RANKZERO_CUDA_ARCHITECTURES:STRING=(90a)?$/m.test(text);
  return settings && !existsSync('/proc/driver/nvidia/version') ? build : join(build, 'device');
}

const options = { cwd: root, encoding: 'utf8', maxBuffer: 64 << 20 } as const;

/** Compiles what is not up to date. Returns the folder. */
export function buildDevice(): string {
  const into = folder();
  const env = { ...process.env, RANKZERO_CUDA: 'on', RANKZERO_CUDA_ARCHITECTURES: '90a' };
  if (into !== build) execFileSync('cmake', ['-S', root, '-B', into], { ...options, env });
  execFileSync('cmake', ['--build', into, '--target', 'launches', '--parallel', '2'], { ...options, env });
  return into;
}

export interface CompiledKernel extends Kernel {
  /** As in the source: `rope<bf16>`. */
  title: string;
}

/** `rz::cuda::(anonymous namespace)::rope<rz::bf16>(…)` as `rope<bf16>`. */
function withTitles(kernels: readonly Kernel[]): CompiledKernel[] {
  const input = kernels.map(({ name }) => name).join('\n');
  const names = execFileSync('c++filt', { input, encoding: 'utf8', maxBuffer: 64 << 20 }).split('\n');
  return kernels.map((kernel, i) => {
    const plain = names[i]!.replace(/rz::|cuda::|\(anonymous namespace\)::|^void /g, '').replace(/ >/g, '>');
    return { ...kernel, title: plain.replace(/\(.*/, '') };
  });
}

export function compiledKernels(into: string): CompiledKernel[] {
  const objects = join(into, 'CMakeFiles/rankzero_backend.dir/cpp/cuda');
  const files = readdirSync(objects).filter((name) => name.endsWith('.cu.o'));
  return withTitles(files.flatMap((name) => deviceCode(readFileSync(join(objects, name)))));
}

/** What a source of cpp/cuda becomes before it is made for one device, with the options that it is compiled with. */
export function intermediate(into: string, source: string): string {
  const all = JSON.parse(readFileSync(join(into, 'compile_commands.json'), 'utf8')) as {
    command: string;
    file: string;
  }[];
  const file = join(root, 'cpp/cuda', source);
  const { command } = all.find((entry) => entry.file === file && entry.command.includes('rankzero_backend.dir'))!;
  const ptx = command
    .replace(/ --generate-code=\S+/, ' -arch=compute_90a')
    .replace(/ -c (\S+) -o \S+/, ' -ptx $1 -o -');
  return execFileSync('sh', ['-c', ptx], { ...options, cwd: into });
}

/** Kernels of fixtures/known.cu. */
export function knownKernels(): Map<string, Kernel> {
  const cubin = join(build, 'device', 'known.cubin');
  mkdirSync(join(build, 'device'), { recursive: true });
  const source = join(import.meta.dirname, 'fixtures/known.cu');
  execFileSync('nvcc', ['-std=c++20', '-arch=sm_90a', '-cubin', source, '-o', cubin], options);
  return new Map(deviceCode(readFileSync(cubin)).map((kernel) => [kernel.name, kernel]));
}

/** A source of fixtures/, compiled as the build compiles kernels. */
export function compileThroughLauncher(source: string): { status: number | null; stderr: string; made: boolean } {
  const cubin = join(build, 'device', `${source}.launcher.cubin`);
  mkdirSync(join(build, 'device'), { recursive: true });
  rmSync(cubin, { force: true });
  const compile = ['nvcc', '-std=c++20', '-arch=sm_90a', '-cubin', join(import.meta.dirname, 'fixtures', source)];
  const { status, stderr } = spawnSync('sh', [join(root, 'cmake/nvcc.sh'), ...compile, '-o', cubin], options);
  return { status, stderr, made: existsSync(cubin) };
}

/** Which rules of the build start nvcc, in the words of its generator. */
export function launcherOfBuild(into: string): string {
  const [ninja, make] = ['CMakeFiles/rules.ninja', 'CMakeFiles/rankzero_backend.dir/build.make'].map((name) =>
    join(into, name),
  );
  const text = readFileSync(existsSync(ninja!) ? ninja! : make!, 'utf8');
  return text
    .split('\n')
    .filter((line) => line.includes('nvcc') && line.includes('-x cu'))
    .join('\n');
}

export interface Launch {
  /** Its mangled name. */
  kernel: string;
  grid: [number, number, number];
  block: [number, number, number];
  /** Dynamic shared memory, and how much of it the kernel was allowed, in bytes. */
  shared: number;
  allowed: number;
}

/** What is launched for the sizes in launches/main.cc. */
export function launches(into: string): Launch[] {
  const text = execFileSync(join(into, 'test/emulated/launches/launches'), [], options);
  return text
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line) as Launch);
}
