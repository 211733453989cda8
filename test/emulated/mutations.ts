// Programs of test/emulated with one thing taken out of their sources: each must turn a test red, or the tests prove little.
// Compiles the changed file as the build did, and links the kernel tests with it.
import { execFileSync } from 'node:child_process';
import { cpSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { emulated } from './emulated.ts';

const root = join(import.meta.dirname, '../..');
const build = join(root, 'build');

export interface Mutation {
  what: string;
  /** The file that is changed, below cpp/. */
  file: string;
  /** Text that occurs in it, and what takes its place. */
  from: string;
  to: string;
  /** What is compiled again: the file itself, or those that include it. */
  compile: readonly string[];
}

interface CompileCommand {
  command: string;
  file: string;
  output?: string;
}

const objectOf = (entry: CompileCommand): string => / -o (\S+)/.exec(entry.command)![1]!;

function commands(): CompileCommand[] {
  const all = JSON.parse(readFileSync(join(build, 'compile_commands.json'), 'utf8')) as CompileCommand[];
  return all.filter(({ command }) => command.includes('test/emulated/emulator') || command.includes('rankzero_core'));
}

function objectsBelow(folder: string): string[] {
  return readdirSync(folder, { recursive: true, encoding: 'utf8' })
    .filter((name) => name.endsWith('.o'))
    .map((name) => join(folder, name));
}

/** Builds with the mutation, in `folder`, the kernel tests as a program or the addon; returns its path. */
export function buildMutant(
  { file, from, to, compile }: Mutation,
  folder: string,
  target: 'program' | 'addon' = 'program',
): string {
  const source = readFileSync(join(root, 'cpp', file), 'utf8');
  if (source.split(from).length !== 2) throw new Error(`${file} must contain once: ${from}`);
  // Headers are found in the folder of the mutant first; sources are compiled from there.
  const changed = join(folder, 'cpp', file);
  mkdirSync(dirname(changed), { recursive: true });
  writeFileSync(changed, source.replace(from, to));
  const entries = commands();
  const replaced = new Map<string, string>();
  for (const name of compile) {
    const original = join(root, 'cpp', name);
    const entry = entries.find((candidate) => candidate.file === original);
    if (!entry) throw new Error(`${name} is not among the sources of the emulator`);
    const copy = join(folder, 'cpp', name);
    if (name !== file) {
      mkdirSync(dirname(copy), { recursive: true });
      cpSync(original, copy);
    }
    const object = join(folder, `${name.replaceAll('/', '_')}.o`);
    const command = entry.command
      .replace(objectOf(entry), object)
      .replace(/ -M[FT] \S+/g, '')
      .replace(original, copy)
      .replace(/^(\S+) /, `$1 -I${join(folder, 'cpp')} `);
    execFileSync('sh', ['-c', command], { cwd: build, stdio: ['ignore', 'pipe', 'pipe'] });
    replaced.set(join(build, objectOf(entry)), object);
  }
  const folders = [
    'test/emulated/emulator/CMakeFiles/rankzero_emulated_backend.dir',
    target === 'addon'
      ? 'CMakeFiles/rankzero_binding.dir'
      : 'test/emulated/emulator/CMakeFiles/kernels_test_emulated.dir',
  ].map((name) => join(build, name));
  // The changed ones first: of an inline function that several objects have, the linker takes the first.
  const objects = [...replaced.values(), ...folders.flatMap(objectsBelow).filter((object) => !replaced.has(object))];
  const program = join(folder, target === 'addon' ? 'rankzero.node' : 'program');
  const libraries = [join(build, 'librankzero_core.a'), join(emulated, 'librankzero_emulator.so')];
  const system = ['-ldnnl', '-fopenmp', '-lpthread', '-ldl', `-Wl,-rpath,${emulated}`];
  const kind = target === 'addon' ? ['-shared'] : [];
  execFileSync('c++', [...kind, '-fsanitize=address,alignment', ...objects, ...libraries, ...system, '-o', program], {
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  return program;
}
