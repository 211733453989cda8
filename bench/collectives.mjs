// How long do collectives take, by size? Ours over tensors of the process group and over ordinary ones, against gloo.
// A time is that of the slowest rank. See bench/README.md.
import { compareSides } from './lib/compare.mjs';
import { marksOf, ourJob, peerJob, runJob } from './lib/job.mjs';
import { readOptions } from './lib/options.mjs';
import { formatRatio, report } from './lib/report.mjs';

const [kilobyte, megabyte] = [1 << 10, 1 << 20];
const settings = readOptions('Times of collectives by size, 8 bytes to 256 MB; bytes are those of the whole tensor.', {
  ranks: { default: [2], help: 'world sizes, e.g. 2,4' },
  sizes: {
    default: [8, kilobyte, 64 * kilobyte, megabyte, 32 * megabyte, 256 * megabyte],
    quick: [8, 64 * kilobyte],
    help: 'bytes',
  },
  samples: { default: 300, quick: 5, help: 'calls of a small one; fewer above 128 kB' },
});
const { python, repetitions, calm, sizes, samples, ranks: worlds } = settings;
const metrics = { waited: { less: true }, enqueued: { less: true } };

/** The slowest rank's times of each operation and size, from the marks of a job. */
function slowest({ marks }) {
  const ranks = marksOf(marks, 'done').map((mark) => mark.times);
  const worst = (name, metric) => Math.max(...ranks.map((times) => times[name][metric]));
  const names = Object.keys(ranks[0]);
  return Object.fromEntries(
    names.map((name) => [name, { waited: worst(name, 'waited'), enqueued: worst(name, 'enqueued') }]),
  );
}

/** The times of one kind of memory, named as the peer names them. */
function ofMemory(times, memory) {
  const own = Object.entries(times).filter(([name]) => name.includes(`/${memory} `));
  return Object.fromEntries(own.map(([name, value]) => [name.replace(`/${memory}`, ''), value]));
}

/** One job measures all kinds of memory; they are results of their own with the same runs of the peer. */
function byMemory(timesOf) {
  const named = (memory) =>
    Object.entries(timesOf(memory))
      .filter(([name]) => memory !== 'mapped' || name.startsWith('all_gather '))
      .map(([name, value]) => [`${name} ${memory}`, value]);
  return Object.fromEntries(['group', 'plain', 'mapped'].flatMap(named));
}

const results = [];
for (const ranks of worlds) {
  process.stderr.write(`${ranks} ranks\n`);
  const args = [sizes.join(','), samples];
  const sides = {
    rankzero: async () => {
      const times = slowest(await runJob(ourJob('collectives.mjs', ranks, args)));
      return byMemory((memory) => ofMemory(times, memory));
    },
  };
  if (python)
    sides.gloo = async () => {
      const times = slowest(await runJob(await peerJob(python, 'torch_collectives.py', ranks, args)));
      return byMemory(() => times);
    };
  const label = (name) => {
    const [operation, bytes, memory] = name.split(' ');
    return { ranks, operation, bytes: Number(bytes), memory };
  };
  results.push(...(await compareSides(sides, { repetitions, calm, metrics, label })));
}

const rows = [
  ['ranks', 'operation', 'bytes', 'memory', 'µs waited for', 'enqueued', 'GB/s', 'gloo, µs', 'rankzero is × (min–max)'],
];
for (const { ranks, operation, bytes, memory, sides, ratios } of results) {
  const { waited, enqueued } = sides.rankzero;
  const speed = Number((bytes / waited.median / 1000).toPrecision(3));
  const numbers = [waited.median, enqueued.median, speed, sides.gloo?.waited?.median];
  rows.push([ranks, operation, bytes, memory, ...numbers, formatRatio(ratios.gloo?.waited)]);
}
report('collectives', settings, results, rows);
