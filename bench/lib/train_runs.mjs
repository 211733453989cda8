// One run of the training programs, of either side, and what comes out of it.
import { lastAt, marksOf, ourJob, peerJob, runJob } from './job.mjs';

/** { steps: 8, read: true } → --steps 8 --read */
export const flags = (options) =>
  Object.entries(options).flatMap(([name, value]) =>
    value === undefined || value === false ? [] : value === true ? [`--${name}`] : [`--${name}`, String(value)],
  );

/** bench/programs/train.mjs on `ranks` ranks with its options. */
export function runOurs(ranks, options, watch) {
  return runJob(ourJob('train.mjs', ranks, flags(options)), watch);
}

/** bench/peers/torch_train.py with the same options; `api` is its --api. */
export async function runPeer(python, api, ranks, options, watch) {
  const { tp, 'sequence-parallel': _, ...known } = options;
  if (tp > 1) throw new Error('the peer has no tensor parallelism: leave out --python or --tp');
  const count = api.startsWith('alone') ? 0 : ranks;
  return runJob(await peerJob(python, 'torch_train.py', count, flags({ api, ...known }), options.threads), watch);
}

/** Tokens per second of a run, of all ranks together and of one, from the median step of each rank. */
export function speedOf({ marks }) {
  const done = marksOf(marks, 'done');
  const perRank = done.reduce((sum, mark) => sum + mark.tokensPerSecond, 0) / done.length;
  return {
    tokensPerSecond: perRank * done[0].dpSize,
    tokensPerSecondPerRank: (perRank * done[0].dpSize) / done[0].world,
    stepSeconds: done.reduce((sum, mark) => sum + mark.stepSeconds, 0) / done.length,
    firstLoss: done[0].losses[0],
    lastLoss: done[0].losses.at(-1),
  };
}

/** Seconds from the launch to the marks of the last rank, and between them. */
export function timesOf({ marks }) {
  const [begin, loaded, ready] = ['begin', 'loaded', 'ready'].map((mark) => lastAt(marks, mark));
  const read = marksOf(marks, 'read');
  return {
    launchToReady: ready,
    launchToBegin: begin,
    loadAndSync: loaded - begin,
    loadSyncAndRead: read.length ? loaded - begin + (lastAt(marks, 'read') - ready) : undefined,
    // Of all shards: the same number on both sides if both loaded the same.
    sumOfSquares: read.length ? read.reduce((sum, mark) => sum + mark.sumOfSquares, 0) : undefined,
  };
}

/** What both sides computed alike: the greatest relative difference of a metric between the first side and the others. */
export function greatestDifference({ sides }, metric) {
  const [first, ...others] = Object.values(sides).map((side) => side[metric]?.median);
  const differences = others.map((value) => Math.abs(value - first) / Math.abs(first)).filter(Number.isFinite);
  return differences.length ? Math.max(...differences) : undefined;
}
