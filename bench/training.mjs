// How many tokens a second does a rank train? Ours against PyTorch (FSDP2, DDP, or a model alone in one process), or against
// ourselves: sharding against independent processes, tensor parallelism against threads.
import { compareSides } from './lib/compare.mjs';
import { modelFolder } from './lib/models.mjs';
import { readOptions } from './lib/options.mjs';
import { formatRatio, report } from './lib/report.mjs';
import { greatestDifference, runOurs, runPeer, speedOf } from './lib/train_runs.mjs';

const settings = readOptions('Tokens a second of training.', {
  model: { default: 'small', help: 'small (32M parameters) or medium (254M)' },
  dir: { default: '', help: 'a model folder instead' },
  precision: { default: ['float32'], help: 'float32, bfloat16 (mixed precision over float32), or both' },
  ranks: { default: [2], quick: [1, 2], help: 'world sizes, e.g. 1,2,4' },
  strategy: { default: 'FULL_SHARD', help: 'FULL_SHARD, SHARD_GRAD_OP or NO_SHARD' },
  tp: { default: 1, help: 'ranks that share each layer (no peer)' },
  'sequence-parallel': { default: false, help: 'with sequence parallelism' },
  threads: { default: 1, help: 'compute threads a rank' },
  steps: { default: 8, quick: 1, help: 'measured steps a run; two more come before' },
  batch: { default: 2, quick: 1, help: 'sequences a rank' },
  length: { default: 256, quick: 8, help: 'tokens a sequence' },
  clip: { default: 1, help: 'gradient norm to clip to, on both sides; 0: neither clips' },
  peers: { default: [''], help: 'fsdp2, fsdp1, ddp, alone, alone-cast; default by ranks and strategy' },
  'against-independent': { default: false, help: 'ranks sharding one model against as many processes with their own' },
  'against-threads': { default: false, help: 'R ranks of --tp R, one thread each, against one process with R threads' },
});
const { repetitions, calm, python, peers, ranks: worlds, precision: precisions } = settings;

const metrics = {
  tokensPerSecond: { less: false },
  tokensPerSecondPerRank: { less: false, compared: false },
  stepSeconds: { less: true, compared: false },
  firstLoss: { compared: false, digits: 8 },
  lastLoss: { compared: false, digits: 8 },
};
const dir = settings.dir || modelFolder(settings.model);

function optionsOf(precision, changes) {
  const { strategy, tp, threads, steps, batch, length, clip } = settings;
  const parallel = { tp, 'sequence-parallel': settings['sequence-parallel'] };
  return { dir, precision, strategy, threads, steps, batch, length, clip, ...parallel, ...changes };
}

function defaultPeers(ranks, precision) {
  if (ranks === 1) return precision === 'bfloat16' ? ['alone', 'alone-cast', 'fsdp2'] : ['alone', 'fsdp2'];
  return settings.strategy === 'NO_SHARD' ? ['ddp'] : ['fsdp2'];
}

const one = (speed) => ({ run: speed });

function sidesOf(ranks, precision) {
  const options = optionsOf(precision);
  const sides = { rankzero: async () => one(speedOf(await runOurs(ranks, options))) };
  if (settings['against-independent']) sides.independent = () => independent(ranks, options);
  else if (settings['against-threads']) {
    const alone = optionsOf(precision, { tp: 1, 'sequence-parallel': false, threads: ranks * settings.threads });
    sides.threads = async () => one(speedOf(await runOurs(1, alone)));
  } else if (python) {
    for (const api of peers[0] ? peers : defaultPeers(ranks, precision))
      sides[api] = async () => one(speedOf(await runPeer(python, api, ranks, options)));
  }
  return sides;
}

/** As many processes of a world of one, at the same time. */
async function independent(processes, options) {
  const runs = await Promise.all(Array.from({ length: processes }, () => runOurs(1, { ...options, tp: 1 })));
  const speeds = runs.map(speedOf);
  const sum = (metric) => speeds.reduce((total, speed) => total + speed[metric], 0);
  return one({
    ...speeds[0],
    tokensPerSecond: sum('tokensPerSecond'),
    tokensPerSecondPerRank: sum('tokensPerSecond') / processes,
    stepSeconds: sum('stepSeconds') / processes,
  });
}

if (settings['against-threads'] && !worlds.every((ranks) => ranks === settings.tp))
  throw new Error('--against-threads compares one group of ranks that share all layers: --ranks R --tp R');
const results = [];
for (const precision of precisions) {
  for (const ranks of worlds) {
    process.stderr.write(`${settings.dir || settings.model}, ${precision}, ${ranks} ranks\n`);
    const label = () => ({ precision, ranks });
    results.push(...(await compareSides(sidesOf(ranks, precision), { repetitions, calm, metrics, label })));
  }
}
for (const result of results) result.firstLossDifference = greatestDifference(result, 'firstLoss');

const rows = [['precision', 'ranks', 'side', 'tokens/s', 'a rank', 's/step', 'rankzero is × (min–max)']];
for (const { precision, ranks, sides, ratios } of results) {
  for (const [side, { tokensPerSecond, tokensPerSecondPerRank, stepSeconds }] of Object.entries(sides)) {
    const numbers = [tokensPerSecond, tokensPerSecondPerRank, stepSeconds].map(({ median }) => median);
    rows.push([precision, ranks, side, ...numbers, formatRatio(ratios[side]?.tokensPerSecond)]);
  }
}
report('training', settings, results, rows);
