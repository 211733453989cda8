// Tokens a second of training on one GPU: ours against PyTorch's FSDP2, with and without torch.compile.
import { native } from '../../dist/native.js';
import { compareSides } from '../lib/compare.mjs';
import { ourJob, peerJob, runJob } from '../lib/job.mjs';
import { gpuModelFolder } from '../lib/models.mjs';
import { readOptions } from '../lib/options.mjs';
import { formatRatio, report } from '../lib/report.mjs';
import { flags, greatestDifference, speedOf } from '../lib/train_runs.mjs';

const settings = readOptions('Tokens a second of training on one GPU.', {
  dir: { default: '', help: 'a model folder; without it a random 1B-class Llama is made' },
  device: { default: 'cuda', help: 'cuda; cpu shows that everything runs' },
  steps: { default: 10, quick: 1, help: 'measured steps a run' },
  batch: { default: 4, quick: 1, help: 'sequences' },
  length: { default: 2048, quick: 8, help: 'tokens a sequence' },
  clip: { default: 1, help: 'gradient norm to clip to; 0: neither clips' },
  peers: { default: ['fsdp2', 'fsdp2-compile'], help: 'fsdp2, fsdp2-compile' },
});
const { python, repetitions, calm, device, steps, batch, length, clip } = settings;
const dir = settings.dir || gpuModelFolder(settings.quick ? 'small' : 'full');
const options = { dir, device, steps, batch, length, clip };
const timeout = 240_000;

const one = (run) => ({ run: { ...speedOf(run), peakGigabytes: peakOf(run) } });
const peakOf = ({ marks }) => (marks.at(-1).allocatedPeakBytes ?? Number.NaN) / 1e9;
const sides = {
  rankzero: async () =>
    one(await runJob(ourJob('train.mjs', 1, flags({ ...options, precision: 'bfloat16' })), { timeout })),
};
if (python)
  for (const api of settings.peers)
    sides[api] = async () =>
      one(await runJob(await peerJob(python, 'torch_gpu.py', 1, flags({ api, ...options })), { timeout }));

const metrics = {
  tokensPerSecond: { less: false },
  stepSeconds: { less: true, compared: false },
  peakGigabytes: { less: true },
  firstLoss: { compared: false, digits: 8 },
  lastLoss: { compared: false, digits: 8 },
};
const label = () => ({ device: native.acceleratorInfo().devices[0]?.name ?? 'cpu' });
const results = await compareSides(sides, { repetitions, calm, metrics, label });
for (const result of results) result.firstLossDifference = greatestDifference(result, 'firstLoss');
const rows = [['side', 'tokens/s', 's/step', 'peak GB', 'rankzero is × (min–max)']];
for (const { sides: measured, ratios } of results)
  for (const [side, { tokensPerSecond, stepSeconds, peakGigabytes }] of Object.entries(measured))
    rows.push([
      side,
      tokensPerSecond.median,
      stepSeconds.median,
      peakGigabytes?.median,
      formatRatio(ratios[side]?.tokensPerSecond),
    ]);
report('gpu/training', settings, results, rows);
