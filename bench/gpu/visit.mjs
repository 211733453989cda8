// Everything that a GPU host can prove and measure, in one command within a time limit: `run.sh all OUT` of a bundle, or
// node bench/gpu/visit.mjs OUT in a checkout. Steps are children with limits of their own; one that fails or hangs does not
// stop the others. OUT has eight files at most, and each step's are whole when the step ends or is ended.
import { spawn, spawnSync } from 'node:child_process';
import { appendFileSync, mkdirSync, openSync, writeFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { parseArgs } from 'node:util';

const root = join(import.meta.dirname, '../..');
const cli = join(root, 'dist/cli/main.js');

const usage = `usage: visit.mjs OUT [options]

  --only STEPS       of doctor, checks, measurements, training, load [all]
  --time-limit S     seconds for all of it [570]
  --python PYTHON    of the peer [python3, where it has torch]
  --size small       tiny shapes and models, to see that everything runs
  --device cpu       for the benches, to see that they run
`;

const { values: given, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    only: { type: 'string' },
    'time-limit': { type: 'string', default: '570' },
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
const doctor = (part, seconds) => [
  cli,
  'doctor',
  '--gpu',
  '--only',
  part,
  '--size',
  given.size,
  '--time-limit',
  String(Math.max(1, Math.floor(seconds) - 10)),
  '--out',
  join(out, part),
];

// `share`: of the time that is left when the step begins, at most; what it does not need is the next one's.
const steps = {
  doctor: { share: 0.2, argv: () => [cli, 'doctor', '--json'], file: 'doctor.json' },
  checks: { share: 0.45, argv: (seconds) => doctor('checks', seconds) },
  measurements: { share: 0.55, argv: (seconds) => doctor('measurements', seconds) },
  training: { share: 0.75, argv: () => bench('training', 2), file: 'training.json' },
  load: { share: 1, argv: () => bench('load', 2), file: 'load.json' },
};

/** Runs one step; its JSON goes to a file, what it says to the log as it comes. */
function run({ argv, file, share }) {
  const seconds = (limit - elapsed()) * share;
  if (seconds < 5) return Promise.resolve('left out: the time is over');
  const json = file ? openSync(join(out, file), 'w') : 'pipe';
  const child = spawn(process.execPath, argv(seconds), { stdio: ['ignore', json, 'pipe'], detached: true });
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
    child.once('error', (error) => end(`failed: ${error.message}`));
    child.once('exit', (code, signal) =>
      // A moment for its last lines.
      setTimeout(
        () =>
          end(
            timedOut
              ? `stopped after ${seconds.toFixed(0)} s`
              : code === 0
                ? 'ok'
                : `failed: ${signal ?? `exit code ${code}`}`,
          ),
        200,
      ),
    );
    // One that a driver holds does not die.
    timers.push(setTimeout(() => end(`does not end after ${seconds.toFixed(0)} s`), seconds * 1000 + 10_000));
  });
}

const chosen = given.only === undefined ? Object.keys(steps) : given.only.split(',');
const unknown = chosen.find((name) => !Object.hasOwn(steps, name));
if (unknown !== undefined) {
  process.stderr.write(`visit.mjs: there is no step ${unknown}\n\n${usage}`);
  process.exit(2);
}
say(`peer: ${python || 'none: python3 has no torch and transformers'}\n`);
const outcomes = {};
for (const name of chosen) {
  say(`\n== ${name}, at ${elapsed().toFixed(0)} s\n`);
  outcomes[name] = await run(steps[name]);
  say(`== ${name}: ${outcomes[name]}\n`);
}
say(
  `\n${Object.entries(outcomes)
    .map(([name, outcome]) => `${name.padEnd(14)} ${outcome}`)
    .join('\n')}\n${elapsed().toFixed(0)} s\n`,
);
process.exitCode = Object.values(outcomes).every((outcome) => outcome === 'ok') ? 0 : 1;
process.exit();
