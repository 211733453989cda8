// How long from the command to the first step, and how much memory until then and in training? Timed and sampled from
// outside, in runs of their own: sampling takes processor time. See bench/README.md.
import { compareSides } from './lib/compare.mjs';
import { MemorySampler } from './lib/memory.mjs';
import { modelFolder } from './lib/models.mjs';
import { readOptions } from './lib/options.mjs';
import { formatRatio, report } from './lib/report.mjs';
import { greatestDifference, runOurs, runPeer, timesOf } from './lib/train_runs.mjs';

const settings = readOptions('From the launch to the first step: time, load and sync, memory of every rank.', {
  model: { default: ['small', 'medium'], quick: ['small'], help: 'small (32M parameters) and medium (254M)' },
  dir: { default: '', help: 'a model folder instead' },
  precision: { default: 'float32', help: 'float32 or bfloat16 (mixed precision over float32)' },
  ranks: { default: 2, help: 'world size' },
  threads: { default: 1, help: 'compute threads a rank' },
  batch: { default: 2, quick: 1, help: 'sequences a rank' },
  length: { default: 256, quick: 8, help: 'tokens a sequence' },
  peers: { default: ['fsdp2', 'fsdp1'], help: 'fsdp2, fsdp1' },
  'memory-repetitions': { default: 2, quick: 1, help: 'runs of each side with the sampler; 0: times only' },
  'memory-steps': { default: 2, quick: 1, help: 'steps in them, after two more' },
  'sample-ms': { default: 20, help: 'between samples' },
});
const { repetitions, calm, python, ranks } = settings;

const timeMetrics = {
  launchToReady: { less: true },
  launchToBegin: { less: true, compared: false },
  loadAndSync: { less: true },
  loadSyncAndRead: { less: true },
  sumOfSquares: { compared: false, digits: 8 },
};
const phases = ['load', 'train'];
const memoryMetrics = {};
for (const phase of phases) {
  memoryMetrics[`${phase}SumOverRanks`] = { less: true };
  for (let rank = 0; rank < ranks; rank++) {
    memoryMetrics[`${phase}Rank${rank}`] = { less: true };
    for (const kind of ['anon', 'shmem', 'file']) memoryMetrics[`${phase}Rank${rank}.${kind}`] = { compared: false };
  }
}

/** Megabytes: the peak of the sum of all ranks, and of each rank the kinds at its own peak. */
async function memoryOfRun(run) {
  const sampler = new MemorySampler(settings['sample-ms']);
  const phaseAfter = { begin: 'load', loaded: 'train', done: undefined };
  const onMark = ({ mark, rank, pid }) => mark in phaseAfter && sampler.enter(rank, pid, phaseAfter[mark]);
  await run({ onMark }).finally(() => sampler.stop());
  const values = {};
  for (const phase of phases) {
    values[`${phase}SumOverRanks`] = sampler.sums[phase] / 1e6;
    for (const [rank, { total, ...kinds }] of Object.entries(sampler.peaks[phase])) {
      values[`${phase}Rank${rank}`] = total / 1e6;
      for (const [kind, bytes] of Object.entries(kinds)) values[`${phase}Rank${rank}.${kind}`] = bytes / 1e6;
    }
  }
  return values;
}

function sidesOf(run) {
  const sides = { rankzero: () => run((options, watch) => runOurs(ranks, options, watch)) };
  if (python)
    for (const api of settings.peers)
      sides[api] = () => run((options, watch) => runPeer(python, api, ranks, options, watch));
  return sides;
}

const results = [];
const rows = [['model', 'quantity', 'side', 'value', 'rankzero is × (min–max)']];
for (const name of settings.dir ? [settings.dir] : settings.model) {
  const { precision, threads, batch, length } = settings;
  const options = { dir: settings.dir || modelFolder(name), precision, threads, batch, length };
  process.stderr.write(`${name}: times\n`);
  const timed = sidesOf(async (run) => ({ run: timesOf(await run({ ...options, steps: 0, read: true })) }));
  const label = (question) => () => ({ model: name, question });
  const [times] = await compareSides(timed, { repetitions, calm, metrics: timeMetrics, label: label('times') });
  times.sumOfSquaresDifference = greatestDifference(times, 'sumOfSquares');
  results.push(times);
  const shown = [
    [times, 'launchToReady', 's from launch to ready'],
    [times, 'loadAndSync', 's of load and sync'],
    [times, 'loadSyncAndRead', 's of load, sync, first read'],
  ];
  if (settings['memory-repetitions'] > 0) {
    process.stderr.write(`${name}: memory\n`);
    const steps = settings['memory-steps'];
    const sampled = sidesOf(async (run) => ({ run: await memoryOfRun((watch) => run({ ...options, steps }, watch)) }));
    const [memory] = await compareSides(sampled, {
      repetitions: settings['memory-repetitions'],
      calm: 0,
      metrics: memoryMetrics,
      label: label('memory'),
    });
    results.push(memory);
    shown.push(
      ...phases.map((phase) => [memory, `${phase}SumOverRanks`, `MB at peak, all ranks, ${phase}`]),
      ...phases.map((phase) => [memory, `${phase}Rank0`, `MB at peak, rank 0, ${phase}`]),
    );
  }
  for (const [{ sides, ratios }, metric, text] of shown)
    for (const [side, values] of Object.entries(sides))
      rows.push([name, text, side, values[metric].median, formatRatio(ratios[side]?.[metric])]);
}
report('start', settings, results, rows);
