// Training and loading on two hosts of this machine (network namespaces), with the link as it is and held to a rate. Ours against
// PyTorch FSDP2 over Gloo through the same link, and against the bound: the longer of a step without communication and the bytes
// of a step at the speed that iperf3 sees. Needs root, iproute2 and iperf3.
import { join } from 'node:path';
import { compareSides } from './lib/compare.mjs';
import { lastAt, parseMark } from './lib/job.mjs';
import { Lab, whyNoHosts } from './lib/lab.mjs';
import { modelFolder } from './lib/models.mjs';
import { readOptions } from './lib/options.mjs';
import { formatRatio, report } from './lib/report.mjs';
import { flags, speedOf } from './lib/train_runs.mjs';

const settings = readOptions('Tokens a second on two hosts, and seconds of loading, by the speed of the link.', {
  model: { default: 'small', help: 'small (32M parameters) or medium (254M) for training' },
  'load-model': { default: 'medium', quick: 'small', help: 'for loading; its files are on the host of rank 0 alone' },
  precision: { default: 'float32', help: 'float32, or bfloat16 (mixed precision over float32)' },
  links: { default: ['', '10gbit', '1gbit'], help: "rates of the link, '' for none" },
  strategies: {
    default: ['FULL_SHARD', 'HYBRID_SHARD'],
    quick: ['FULL_SHARD'],
    help: 'of ours; FSDP2 runs as the first',
  },
  ranks: { default: 1, help: 'ranks a host' },
  steps: { default: 8, quick: 1, help: 'measured steps a run; two more come before' },
  batch: { default: 2, quick: 1, help: 'sequences a rank' },
  length: { default: 256, quick: 8, help: 'tokens a sequence' },
});
if (whyNoHosts) throw new Error(whyNoHosts);
const { repetitions, calm, python, ranks, links, strategies, steps, batch, length, precision } = settings;
const root = join(import.meta.dirname, '..');
const dir = modelFolder(settings.model);
const port = 29_700;
const secret = 'of-this-bench';

/** Runs a command on each host of a fresh lab; resolves to what the ranks said, and the bytes of host 1 from mark to mark. */
async function onHosts(link, commandOf, env, options = {}) {
  const lab = new Lab(2);
  try {
    for (const host of lab.hosts) host.limit(link);
    const started = performance.now();
    const marks = [];
    const wire = {};
    const runs = lab.hosts.map((host, i) =>
      host.run(commandOf(i, lab.hosts[0].address), {
        env: { OMP_NUM_THREADS: '1', RANKZERO_QUIET: '1', ...env },
        timeout: 900_000,
        mounts: options.mountsOf?.(i),
        onLine: (line) => {
          const mark = parseMark(line);
          if (!mark) return;
          marks.push({ ...mark, at: (performance.now() - started) / 1000 });
          wire[mark.mark] = lab.hosts[1].wire.received;
        },
      }),
    );
    for (const { code, stdout, stderr } of await Promise.all(runs))
      if (code !== 0) throw new Error(`${stderr}\n${stdout}`);
    return { marks, wire };
  } finally {
    lab[Symbol.dispose]();
  }
}

const ours = (program, more) => (i, master) => [
  ...[process.execPath, join(root, 'dist/cli/main.js'), 'run', '--nnodes', '2', '--node-rank', String(i)],
  ...['--master-address', `${master}:${port}`, '--nproc', String(ranks), join(root, 'bench/programs', program)],
  ...flags(more),
];
const theirs = (more) => (i, master) => [
  ...[
    python,
    '-m',
    'torch.distributed.run',
    '--nnodes',
    '2',
    '--node-rank',
    String(i),
    '--nproc-per-node',
    String(ranks),
  ],
  ...['--master-addr', master, '--master-port', String(port), join(root, 'bench/peers/torch_train.py')],
  ...flags(more),
];
const ourEnv = { RANKZERO_SECRET: secret };
const theirEnv = { GLOO_SOCKET_IFNAME: 'e0' };

/** Bytes a second that iperf3 sees from host 0 to host 1. */
async function linkSpeed(link) {
  const lab = new Lab(2);
  try {
    const [first, second] = lab.hosts;
    for (const host of lab.hosts) host.limit(link);
    second.start(['iperf3', '-s', '-1', '-B', second.address]);
    await new Promise((resolve) => setTimeout(resolve, 500));
    const { stdout } = await first.run(['iperf3', '-J', '-t', '3', '-c', second.address]);
    return JSON.parse(stdout).end.sum_received.bits_per_second / 8;
  } finally {
    lab[Symbol.dispose]();
  }
}

/** A run without communication: as many processes, each with a model of its own. */
async function apart(options) {
  const lab = new Lab(2);
  try {
    const runs = lab.hosts.flatMap((host) =>
      Array.from({ length: ranks }, () =>
        host.run([process.execPath, join(root, 'bench/programs/train.mjs'), ...flags(options)], {
          env: { OMP_NUM_THREADS: '1' },
          timeout: 900_000,
        }),
      ),
    );
    const said = (await Promise.all(runs)).map(({ stdout }) => ({
      marks: stdout.split('\n').flatMap((line) => parseMark(line) ?? []),
    }));
    return said.map(speedOf).reduce((sum, { stepSeconds }) => sum + stepSeconds / said.length, 0);
  } finally {
    lab[Symbol.dispose]();
  }
}

const results = [];
const rows = [['link', 'question', 'side', 'value', 'of the bound', 'rankzero is × (min–max)']];
const metrics = {
  tokensPerSecond: { less: false },
  stepSeconds: { less: true, compared: false },
  bytesPerStep: { compared: false },
  firstLoss: { compared: false, digits: 8 },
};
const common = { dir, precision, steps, batch, length };
for (const link of links) {
  const shown = link || 'none';
  const bytesPerSecond = await linkSpeed(link);
  process.stderr.write(`link ${shown}: iperf3 ${Math.round(bytesPerSecond / 1e6)} MB/s\n`);
  const alone = await apart(common);
  const train = async (commandOf, env) => {
    const { marks, wire } = await onHosts(link, commandOf, env);
    return { run: { ...speedOf({ marks }), bytesPerStep: (wire.done - wire.ready) / (steps + 2) } };
  };
  const sides = {};
  for (const strategy of strategies) sides[strategy] = () => train(ours('train.mjs', { ...common, strategy }), ourEnv);
  if (python) sides.fsdp2 = () => train(theirs({ api: 'fsdp2', ...common }), theirEnv);
  const [trained] = await compareSides(sides, {
    repetitions,
    calm,
    metrics,
    label: () => ({ link: shown, question: 'training' }),
  });
  results.push({ ...trained, iperfBytesPerSecond: bytesPerSecond, stepWithoutCommunication: alone });
  for (const [side, { tokensPerSecond, stepSeconds, bytesPerStep }] of Object.entries(trained.sides)) {
    const bound = Math.max(alone, bytesPerStep.median / bytesPerSecond);
    rows.push([
      shown,
      'tokens/s',
      side,
      tokensPerSecond.median,
      (bound / stepSeconds.median).toFixed(2),
      formatRatio(trained.ratios[side]?.tokensPerSecond),
    ]);
  }
  const loadDir = modelFolder(settings['load-model']);
  const loadMetrics = { loadSeconds: { less: true }, bytes: { compared: false } };
  // With shards within a host all of the model crosses, with shards over both the half.
  const load = (strategy) => async () => {
    const mountsOf = (i) => (i > 0 ? { [loadDir]: 'empty' } : {});
    const program = ours('train.mjs', { ...common, dir: loadDir, strategy, steps: 0, 'config-from-rank0': true });
    const { marks, wire } = await onHosts(link, program, ourEnv, { mountsOf });
    return {
      run: { loadSeconds: lastAt(marks, 'loaded') - lastAt(marks, 'begin'), bytes: wire.loaded - wire.begin },
    };
  };
  const [loaded] = await compareSides(Object.fromEntries(strategies.map((strategy) => [strategy, load(strategy)])), {
    repetitions,
    calm,
    metrics: loadMetrics,
    label: () => ({ link: shown, question: 'loading' }),
  });
  results.push({ ...loaded, iperfBytesPerSecond: bytesPerSecond });
  for (const [side, { loadSeconds, bytes }] of Object.entries(loaded.sides)) {
    const ofBound = bytes.median / bytesPerSecond / loadSeconds.median;
    rows.push([shown, `s to load ${settings['load-model']}`, side, loadSeconds.median, ofBound.toFixed(2), '']);
  }
}
report('hosts', settings, results, rows);
