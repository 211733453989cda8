// What does a call into the addon cost the thread that makes it? Beside the like in Python with torch, whose tiny ops include
// their work. See bench/README.md.
import { compareSides } from './lib/compare.mjs';
import { ourJob, peerJob, runJob } from './lib/job.mjs';
import { readOptions } from './lib/options.mjs';
import { formatRatio, report } from './lib/report.mjs';

const settings = readOptions('Nanoseconds of calls.', {
  calls: { default: 1000, quick: 20, help: 'calls of a sample, before the stream is waited for' },
  samples: { default: 200, quick: 2, help: 'samples of each call in a run' },
});
const { python, repetitions, calm, calls, samples } = settings;

const nanoseconds = ({ marks }) =>
  Object.fromEntries(
    Object.entries(marks[0].times).map(([name, { least, median }]) => [
      name,
      { least: 1000 * least, median: 1000 * median },
    ]),
  );
const args = [calls, samples];
const sides = { rankzero: async () => nanoseconds(await runJob(ourJob('calls.mjs', 1, args))) };
if (python) sides.torch = async () => nanoseconds(await runJob(await peerJob(python, 'torch_calls.py', 0, args)));
const metrics = { least: { less: true }, median: { less: true } };
const results = await compareSides(sides, { repetitions, calm, metrics });

const rows = [['call', 'ns', 'least', 'torch, ns', 'rankzero is × (min–max)']];
for (const { case: name, sides: measured, ratios } of results) {
  const { median, least } = measured.rankzero;
  rows.push([name, median.median, least.median, measured.torch?.median?.median, formatRatio(ratios.torch?.median)]);
}
report('calls', settings, results, rows);
