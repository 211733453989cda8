// Everything that a GPU host can prove and measure, in one command within a time limit: `run.sh all OUT` of a bundle, or
// node bench/gpu/visit.mjs OUT in a checkout. Steps are children with limits of their own, what may take the device down last;
// one that fails or hangs does not stop the others. OUT has visit.txt, written as it comes, and visit.json with what each step
// found, written after each; running/ has what the step that is under way has found so far.
import { spawn, spawnSync } from 'node:child_process';
import { appendFileSync, mkdirSync, openSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { parseArgs } from 'node:util';

const root = join(import.meta.dirname, '../..');
const cli = join(root, 'dist/cli/main.js');

// Seconds that each step may take, in their order; what one leaves is for those behind it. Together no more than wholeLimit.
const wholeLimit = 540;
const steps = {
  doctor: { seconds: 15, argv: () => [cli, 'doctor', '--json'] },
  ops: { seconds: 85, gpu: true },
  allocator: { seconds: 15, gpu: true },
  collectives: { seconds: 10, gpu: true },
  bandwidth: { seconds: 20, gpu: true },
  gemm: { seconds: 30, gpu: true },
  kernels: { seconds: 30, gpu: true },
  attention: { seconds: 25, gpu: true },
  step: { seconds: 40, gpu: true },
  load: { seconds: 30, gpu: true },
  'bench-load': { seconds: 45, argv: () => bench('load', 2) },
  hopper: { seconds: 25, gpu: true },
  hopper_attention: { seconds: 20, gpu: true },
  hopper_step: { seconds: 30, gpu: true },
  'bench-training': { seconds: 60, argv: () => bench('training', 2) },
  sanitizers: { seconds: 60, gpu: true },
};
const groups = {
  checks: ['ops', 'allocator', 'collectives', 'hopper', 'sanitizers'],
  measurements: ['bandwidth', 'gemm', 'kernels', 'attention', 'step', 'load', 'hopper_attention', 'hopper_step'],
  benches: ['bench-load', 'bench-training'],
};

const usage = `usage: visit.mjs OUT [options]

  --only STEPS       of ${Object.keys(steps).join(', ')};
                     ${Object.keys(groups).join(', ')} stand for several [all]
  --time-limit S     seconds for all of it [${wholeLimit}]
  --python PYTHON    of the peer [python3, where it has torch]
  --size small       tiny shapes and models, to see that everything runs
  --device cpu       for the benches, to see that they run
`;

const { values: given, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    only: { type: 'string' },
    'time-limit': { type: 'string', default: String(wholeLimit) },
    python: { type: 'string' },
    size: { type: 'string', default: 'full' },
    device: { type: 'string', default: 'cuda' },
    help: { type: 'boolean' },
  },
});
if (given.help || positionals.length !== 1) {
  process.stderr.write(usage);
  process.exit(given.help ? 0 : 2);
}
const out = resolve(positionals[0]);
mkdirSync(out, { recursive: true });
const limit = Number(given['time-limit']);
const start = performance.now();
const elapsed = () => (performance.now() - start) / 1000;
const log = join(out, 'visit.txt');
writeFileSync(log, '');
function say(text) {
  process.stdout.write(text);
  appendFileSync(log, text);
}

function pythonWithTorch() {
  if (given.python !== undefined) return given.python;
  const found = spawnSync('python3', ['-c', 'import torch, transformers, sys; print(sys.executable)'], {
    encoding: 'utf8',
    timeout: 60_000,
  });
  return found.status === 0 ? found.stdout.trim() : '';
}

const python = pythonWithTorch();
const small = given.size === 'small';
const bench = (name, repetitions) => [
  join(root, `bench/gpu/${name}.mjs`),
  '--device',
  given.device,
  '--repetitions',
  String(small ? 1 : repetitions),
  ...(python ? ['--python', python] : []),
  ...(small ? ['--quick'] : []),
];
const chosen =
  given.only === undefined ? Object.keys(steps) : given.only.split(',').flatMap((name) => groups[name] ?? [name]);
const unknown = chosen.find((name) => !Object.hasOwn(steps, name));
if (unknown !== undefined) {
  process.stderr.write(`visit.mjs: there is no step ${unknown}\n\n${usage}`);
  process.exit(2);
}
const toRun = Object.keys(steps).filter((name) => chosen.includes(name));
const running = join(out, 'running');
const visit = { date: new Date().toISOString(), limit, seconds: 0, steps: {} };

/** What the step may take: what those behind it leave, which get less each where there is not enough for all. */
function secondsFor(name) {
  const left = limit - elapsed();
  const own = steps[name].seconds;
  const behind = toRun.slice(toRun.indexOf(name) + 1).reduce((sum, other) => sum + steps[other].seconds, 0);
  return Math.max((left * own) / (own + behind), left - behind);
}

const doctor = (part, seconds) => [
  cli,
  'doctor',
  '--gpu',
  '--only',
  part,
  '--size',
  given.size,
  '--time-limit',
  String(Math.max(1, Math.floor(seconds) - 5)),
  '--out',
  running,
];

/** Runs one step; its JSON goes to a file, what it says to the log as it comes. */
function run(name) {
  const { argv, gpu } = steps[name];
  const seconds = secondsFor(name);
  if (seconds < 5) return Promise.resolve('left out: the time is over');
  rmSync(running, { recursive: true, force: true });
  mkdirSync(running);
  const json = gpu ? 'pipe' : openSync(join(running, `${name}.json`), 'w');
  // A bench is not to fall over what a check has found.
  const { hopper } = visit.steps;
  const env = hopper && hopper.outcome !== 'ok' ? { ...process.env, RANKZERO_ATTENTION: 'mma' } : process.env;
  const child = spawn(process.execPath, gpu ? doctor(name, seconds) : argv(), {
    stdio: ['ignore', json, 'pipe'],
    detached: true,
    env,
  });
  let timedOut = false;
  // Its children too: benches have ranks.
  const kill = (signal) => {
    try {
      process.kill(-child.pid, signal);
    } catch {}
  };
  const timers = [
    setTimeout(() => {
      timedOut = true;
      kill('SIGTERM');
    }, seconds * 1000),
    setTimeout(() => kill('SIGKILL'), seconds * 1000 + 3000),
  ];
  for (const stream of [child.stdout, child.stderr]) stream?.setEncoding('utf8').on('data', say);
  return new Promise((done) => {
    const end = (text) => {
      for (const timer of timers) clearTimeout(timer);
      kill('SIGKILL');
      done(text);
    };
    const outcome = (code, signal) => {
      if (timedOut) return `stopped after ${seconds.toFixed(0)} s`;
      return code === 0 ? 'ok' : `failed: ${signal ?? `exit code ${code}`}`;
    };
    child.once('error', (error) => end(`failed: ${error.message}`));
    // A moment for its last lines.
    child.once('exit', (code, signal) => setTimeout(() => end(outcome(code, signal)), 200));
    // One that a driver holds does not die.
    timers.push(setTimeout(() => end(`does not end after ${seconds.toFixed(0)} s`), seconds * 1000 + 10_000));
  });
}

/** What the step wrote, whole or as far as it came. */
function foundOf(name) {
  const file = join(running, steps[name].gpu ? 'doctor-gpu.json' : `${name}.json`);
  try {
    return JSON.parse(readFileSync(file, 'utf8'));
  } catch {
    return undefined;
  }
}

say(`peer: ${python || 'none: python3 has no torch and transformers'}\n`);
for (const name of toRun) {
  say(`\n== ${name}, at ${elapsed().toFixed(0)} s, at most ${secondsFor(name).toFixed(0)} s\n`);
  const begin = elapsed();
  const outcome = await run(name);
  visit.steps[name] = { outcome, seconds: elapsed() - begin, found: foundOf(name) };
  visit.seconds = elapsed();
  writeFileSync(join(out, 'visit.json'), `${JSON.stringify(visit, undefined, 1)}\n`);
  say(`== ${name}: ${outcome}\n`);
}
rmSync(running, { recursive: true, force: true });
const outcomes = Object.entries(visit.steps).map(([name, { outcome }]) => `${name.padEnd(18)} ${outcome}`);
say(`\n${outcomes.join('\n')}\n${elapsed().toFixed(0)} s\n`);
process.exitCode = Object.values(visit.steps).every(({ outcome }) => outcome === 'ok') ? 0 : 1;
process.exit();
