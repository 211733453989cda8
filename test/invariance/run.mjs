// node test/invariance/run.mjs record|compare FILE [--package DIR] [--only TEXT]
// `record` runs every setting and writes what came out; `compare` runs them again and names what differs. Bits follow from the
// processor too, so a recording says which one made it: on another machine, record with the old commit's build first
// (--package is a checkout of it that was built; a build of the emulator in it runs the settings on devices).
import { execFileSync, spawn } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, realpathSync, rmSync, writeFileSync } from 'node:fs';
import { cpus, tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { parseArgs } from 'node:util';
import { keyOf, planned, settings } from './settings.mjs';

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { package: { type: 'string' }, only: { type: 'string' } },
});
const [verb, file] = positionals;
if (!['record', 'compare'].includes(verb) || !file) {
  console.error('usage: node test/invariance/run.mjs record|compare FILE [--package DIR] [--only TEXT]');
  process.exit(2);
}
const root = resolve(values.package ?? join(import.meta.dirname, '../..'));
const emulated = join(root, 'build/emulated');
const addon = (name) => join(emulated, name);
const canEmulate = existsSync(addon('rankzero.node'));

const recorded = verb === 'compare' ? JSON.parse(readFileSync(file, 'utf8')) : undefined;
const processor = cpus()[0].model;
if (recorded && recorded.processor !== processor)
  console.log(`recorded on ${recorded.processor}, this is ${processor}: bits may differ by that alone`);

const found = { processor, results: {} };
let different = 0;
let same = 0;
for (const setting of [...settings, ...planned]) {
  const key = keyOf(setting);
  if (values.only && !key.includes(values.only)) continue;
  if (setting.device === 'cuda' && !canEmulate) {
    console.log(`skipped, no emulator is built: ${key}`);
    continue;
  }
  const started = Date.now();
  const result = setting.plan ? await plan(setting.plan) : await job(setting);
  found.results[key] = result;
  const verdict = recorded ? judge(recorded.results[key], result) : 'recorded';
  console.log(`${verdict.padEnd(9)} ${((Date.now() - started) / 1000).toFixed(1).padStart(5)} s  ${key}`);
}
if (verb === 'record') writeFileSync(file, `${JSON.stringify(found, null, 1)}\n`);
else console.log(`${same} settings the same, ${different} different`);
process.exitCode = different > 0 ? 1 : 0;

function judge(wanted, got) {
  const differences = [...differing(wanted, got, '')];
  if (differences.length === 0) {
    same++;
    return 'same';
  }
  different++;
  for (const line of differences.slice(0, 6)) console.log(`  ${line}`);
  if (differences.length > 6) console.log(`  and ${differences.length - 6} more`);
  return 'DIFFERENT';
}

function* differing(wanted, got, path) {
  if (wanted !== null && got !== null && typeof wanted === 'object' && typeof got === 'object') {
    for (const key of new Set([...Object.keys(wanted), ...Object.keys(got)]))
      yield* differing(wanted[key], got[key], path ? `${path}.${key}` : key);
  } else if (wanted !== got) yield `${path}: ${wanted} before, ${got} now`;
}

function environment(setting) {
  const env = { ...process.env, RANKZERO_PACKAGE: root, RANKZERO_QUIET: '1' };
  if (setting.gather) env.RANKZERO_FSDP_GATHER = setting.gather;
  if (setting.device !== 'cuda') return env;
  return {
    ...env,
    RANKZERO_EMULATED_SEED: '1',
    RANKZERO_EMULATED_DEVICES: String(setting.world),
    RANKZERO_ADDON: addon('rankzero.node'),
    RANKZERO_CUDA_QUEUE: '32', // the emulator's queues hold 64
    RANKZERO_CUDA_DRIVER_PATH: addon('libcuda.so.1'),
    RANKZERO_CUBLASLT_PATH: addon('libcublasLt.so.13'),
    RANKZERO_NCCL_PATH: addon('libnccl.so.2'),
    ASAN_OPTIONS: 'detect_leaks=0',
    LD_PRELOAD: realpathSync(execFileSync('c++', ['-print-file-name=libasan.so'], { encoding: 'utf8' }).trim()),
  };
}

/** What every rank said. */
async function job(setting) {
  const folder = mkdtempSync(join(tmpdir(), 'rankzero-invariance-'));
  try {
    const lines = await output(
      [join(root, 'dist/cli/main.js'), 'run', '--nproc', String(setting.world)],
      [join(import.meta.dirname, 'program.mjs'), JSON.stringify(setting), folder],
      environment(setting),
    );
    const ranks = {};
    for (const line of lines) {
      const [, rank = '0', json] = /^(?:\[rank (\d+)\] )?RESULT (.*)$/.exec(line) ?? [];
      if (json) ranks[rank] = JSON.parse(json);
    }
    if (Object.keys(ranks).length !== setting.world) throw new Error(`${keyOf(setting)}:\n${lines.join('\n')}`);
    return ranks;
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/** A plan as `rankzero plan` gives it: memory to the byte, and what the ranks send. */
async function plan(args) {
  const model = join(import.meta.dirname, '../reference', args.name);
  const lines = await output(
    [join(root, 'dist/cli/main.js'), 'plan', '--model', model],
    [...args.flags, '--json'],
    environment({}),
  );
  const report = JSON.parse(lines.join('\n'));
  delete report.model;
  // Kinds of collectives that came later: one that nothing uses, and one that was not counted.
  for (const wire of Object.values(report.wire)) {
    if (wire.allToAll?.calls === 0) delete wire.allToAll;
    if (wire.barrier?.between === 0) delete wire.barrier;
  }
  // Plans of one host and of CPU ranks said neither, and no bytes between hosts.
  if (report.ranks.nnodes === 1) delete report.ranks.nnodes;
  if (report.settings.device === 'cpu') delete report.settings.device;
  for (const phase of Object.values(report.wire))
    for (const kind of Object.values(phase)) {
      if (kind.between !== 0) continue;
      kind.bytes = kind.within;
      delete kind.within;
      delete kind.between;
    }
  return report;
}

function output(before, after, env) {
  const child = spawn(process.execPath, [...before, ...after], { env, stdio: ['ignore', 'pipe', 'pipe'] });
  let text = '';
  let problem = '';
  child.stdout.setEncoding('utf8').on('data', (chunk) => {
    text += chunk;
  });
  child.stderr.setEncoding('utf8').on('data', (chunk) => {
    problem += chunk;
  });
  return new Promise((done, fail) => {
    child.once('close', (code) => {
      if (code === 0) done(text.split('\n'));
      else fail(new Error(`exit code ${code}: ${after.join(' ')}\n${text}${problem}`));
    });
  });
}
