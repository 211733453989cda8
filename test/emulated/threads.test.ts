// The host's side of the CUDA backend under ThreadSanitizer: threads/main.cc, and that it would see a lock that is missing.
// `npm run test:tsan` runs it for longer.
import { execFileSync } from 'node:child_process';
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { available, type Outcome, run } from './emulated.ts';

const root = join(import.meta.dirname, '../..');
const build = join(root, 'build');
const output = join(build, 'threads');
const objects = join(build, 'test/emulated/threads/CMakeFiles/threads_emulated.dir');
const tsan = execFileSync('c++', ['-print-file-name=libtsan.so'], { encoding: 'utf8' }).trim();
const missing = !available
  ? 'the build found no headers of CUDA'
  : !existsSync(tsan)
    ? 'the compiler has no libtsan'
    : '';
if (missing) console.log(`threads.test.ts: ${missing}, so no races are looked for`);

const long = process.env.RANKZERO_TEST_THREADS === 'all';
const seeds = long ? Array.from({ length: 10 }, (_, i) => i + 1) : [1, 2];
const rounds = long ? 2000 : 60;

function runThreads(program: string, seed: number): Promise<Outcome> {
  const env = {
    ...process.env,
    RANKZERO_EMULATED_SEED: String(seed),
    RANKZERO_CUDA_DRIVER_PATH: join(output, 'libthreads_driver.so'),
    RANKZERO_NCCL_PATH: join(output, 'libthreads_nccl.so'),
    TSAN_OPTIONS: 'halt_on_error=1',
  };
  return run(program, [String(rounds)], env, 600_000);
}

describe.skipIf(missing !== '')('threads of the host, under ThreadSanitizer', () => {
  let folder: string;
  beforeAll(() => {
    const args = ['--build', build, '--target', 'threads_emulated', '--parallel', '2'];
    execFileSync('cmake', args, { cwd: root, stdio: ['ignore', 'pipe', 'pipe'], maxBuffer: 64 << 20 });
    folder = mkdtempSync(join(tmpdir(), 'rankzero-threads-'));
  }, 600_000);
  afterAll(() => rmSync(folder, { recursive: true }));

  it.each(seeds)(
    'share nothing without a lock, seed %i',
    async (seed) => {
      const { code, stdout, stderr } = await runThreads(join(output, 'threads_emulated'), seed);
      expect(stderr).toBe('');
      expect(stdout).toBe(`ok ${rounds} rounds\n`);
      expect(code).toBe(0);
    },
    600_000,
  );

  /** The program with one text in one of its sources changed. */
  function mutant(file: string, from: string, to: string): string {
    const original = join(root, 'cpp', file);
    const text = readFileSync(original, 'utf8');
    expect(text.split(from).length, `${file} has once: ${from}`).toBe(2);
    const source = join(folder, 'mutant.cc');
    writeFileSync(
      source,
      text.replace(from, () => to),
    );
    const all = JSON.parse(readFileSync(join(build, 'compile_commands.json'), 'utf8')) as Command[];
    const entry = all.find(({ file: name, command }) => name === original && command.includes('threads_emulated.dir'))!;
    const own = / -o (\S+)/.exec(entry.command)![1]!;
    const object = join(folder, 'mutant.o');
    const compile = entry.command
      .replace(/ -M[FT] \S+/g, '')
      .replace(own, object)
      .replace(` -c ${original}`, ` -c ${source}`);
    execFileSync('sh', ['-c', compile], { cwd: build, stdio: ['ignore', 'pipe', 'pipe'] });
    const others = readdirSync(objects, { recursive: true, encoding: 'utf8' })
      .filter((name) => name.endsWith('.o'))
      .map((name) => join(objects, name))
      .filter((name) => name !== join(build, own));
    const program = join(folder, 'mutant');
    execFileSync('c++', ['-fsanitize=thread', '-rdynamic', object, ...others, '-lpthread', '-ldl', '-o', program]);
    return program;
  }

  it.each([
    [
      'the pool of events',
      'cuda/context.cc',
      '    std::lock_guard lock(pool->mutex);\n    pool->free.push_back(done);',
      '    pool->free.push_back(done);',
    ],
    [
      'events of another stream',
      'cuda/stream.cc',
      '    std::lock_guard lock(mutex_);\n    if (position <= completed_) return nullptr;',
      '    if (position <= completed_) return nullptr;',
    ],
  ])(
    'are caught where a lock is missing: %s',
    async (_, file, from, to) => {
      const { code, stderr } = await runThreads(mutant(file, from, to), 1);
      expect(stderr).toContain('WARNING: ThreadSanitizer: data race');
      expect(code).not.toBe(0);
    },
    300_000,
  );
});

interface Command {
  command: string;
  file: string;
}
