// How do the time of a step and memory grow with ranks, layers, length and vocabulary? One of them is varied at a time, the
// small model is around it; each gets the exponent b of a · x^b, by least squares over logarithms. See bench/README.md.
import { compareSides } from './lib/compare.mjs';
import { marksOf } from './lib/job.mjs';
import { MemorySampler } from './lib/memory.mjs';
import { smallConfig } from './lib/models.mjs';
import { readOptions } from './lib/options.mjs';
import { report } from './lib/report.mjs';
import { fittedExponent, round } from './lib/statistics.mjs';
import { runOurs, runPeer, speedOf } from './lib/train_runs.mjs';

const settings = readOptions('Exponents of step time and memory.', {
  ranks: { default: [1, 2, 4], quick: [1, 2], help: 'world sizes; the work of a rank stays the same' },
  layers: { default: [2, 4, 8, 16], quick: [1, 2], help: 'numbers of layers' },
  length: { default: [128, 256, 512, 1024, 2048], quick: [8, 16], help: 'tokens of the one sequence of a rank' },
  vocabulary: { default: [4096, 8192, 16384, 32768, 65536], quick: [64, 128], help: 'tokens of the vocabulary' },
  world: { default: 2, quick: 1, help: 'ranks where they are not varied' },
  precision: { default: 'float32', help: 'float32 or bfloat16 (mixed precision over float32)' },
  threads: { default: 1, help: 'compute threads a rank' },
  steps: { default: 4, quick: 1, help: 'measured steps a run; two more come before' },
  'sample-ms': { default: 100, help: 'between samples of memory' },
});
const { repetitions, calm, python, precision, threads, steps, world } = settings;
const tiny = { hidden_size: 32, intermediate_size: 64, num_hidden_layers: 1, vocab_size: 64 };

/** The run of one point: how many ranks, which model, how long a sequence. */
function pointOf(varied, value) {
  const sizes = settings.quick ? { ...tiny } : {};
  if (varied === 'layers') sizes.num_hidden_layers = value;
  if (varied === 'vocabulary') sizes.vocab_size = value;
  const length = varied === 'length' ? value : settings.quick ? 8 : 256;
  const options = { config: smallConfig(sizes), precision, threads, steps, batch: 1, length };
  return { ranks: varied === 'ranks' ? value : world, options };
}

/** The greatest memory of a rank from the time its model is loaded, and what a rank's native tensors took. */
async function measure(run) {
  const sampler = new MemorySampler(settings['sample-ms']);
  const onMark = ({ mark, rank, pid }) => {
    if (mark === 'loaded') sampler.enter(rank, pid, 'train');
    if (mark === 'done') sampler.enter(rank, pid, undefined);
  };
  const job = await run({ onMark }).finally(() => sampler.stop());
  // A tiny run may be over before the first sample.
  const peaks = Object.values(sampler.peaks.train ?? {}).map(({ total }) => total);
  const allocated = marksOf(job.marks, 'done').map((mark) => mark.allocatedPeakBytes ?? Number.NaN);
  return {
    stepSeconds: speedOf(job).stepSeconds,
    peakMegabytes: peaks.length > 0 ? Math.max(...peaks) / 1e6 : undefined,
    allocatedMegabytes: allocated.some(Number.isNaN) ? undefined : Math.max(...allocated) / 1e6,
  };
}

const metrics = {
  stepSeconds: { less: true },
  peakMegabytes: { less: true },
  allocatedMegabytes: { less: true, compared: false },
};
const results = [];
const rows = [['varied', 'side', 'values', 's/step', 'exponent', 'MB a rank', 'exponent']];
for (const varied of ['ranks', 'layers', 'length', 'vocabulary']) {
  const values = settings[varied];
  const points = [];
  for (const value of values) {
    process.stderr.write(`${varied} ${value}\n`);
    const { ranks, options } = pointOf(varied, value);
    const sides = { rankzero: async () => ({ run: await measure((watch) => runOurs(ranks, options, watch)) }) };
    if (python)
      sides.fsdp2 = async () => ({ run: await measure((watch) => runPeer(python, 'fsdp2', ranks, options, watch)) });
    points.push(...(await compareSides(sides, { repetitions, calm, metrics, label: () => ({ varied, value }) })));
  }
  const exponents = {};
  for (const side of Object.keys(points[0].sides)) {
    const medians = (metric) => points.map((point) => point.sides[side][metric]?.median);
    exponents[side] = {};
    for (const metric of Object.keys(metrics))
      if (!medians(metric).includes(undefined))
        exponents[side][metric] = round(fittedExponent(values, medians(metric)), 3);
    const shown = (metric) => [medians(metric).join(' '), exponents[side][metric]];
    rows.push([varied, side, values.join(' '), ...shown('stepSeconds'), ...shown('peakMegabytes')]);
  }
  results.push({ varied, values, exponents, points });
}
report('growth', settings, results, rows);
