// From a checkpoint in the page cache to weights on the GPU: ours against safetensors with .to('cuda'), and against FSDP2's
// set_model_state_dict from rank 0.
import { compareSides } from '../lib/compare.mjs';
import { marksOf, ourJob, peerJob, runJob } from '../lib/job.mjs';
import { gpuModelFolder } from '../lib/models.mjs';
import { readOptions } from '../lib/options.mjs';
import { formatRatio, report } from '../lib/report.mjs';
import { flags } from '../lib/train_runs.mjs';

const settings = readOptions('Seconds from a checkpoint to weights on one GPU.', {
  dir: { default: '', help: 'a model folder; without it a random 1B-class Llama is made' },
  device: { default: 'cuda', help: 'cuda; cpu shows that everything runs' },
  rounds: { default: 4, quick: 2, help: 'loads in a process; the first is told apart' },
  peers: { default: ['to-device', 'fsdp2-load'], help: 'to-device, fsdp2-load' },
});
const { python, repetitions, calm, device, rounds } = settings;
const dir = settings.dir || gpuModelFolder(settings.quick ? 'small' : 'full');
const options = { dir, device, rounds };
const timeout = 120_000;

function one({ marks }) {
  const [{ seconds, firstSeconds, bytes }] = marksOf(marks, 'done');
  return { run: { seconds, firstSeconds, gigabytesPerSecond: bytes / seconds / 1e9 } };
}
const sides = { rankzero: async () => one(await runJob(ourJob('load.mjs', 1, flags(options)), { timeout })) };
if (python)
  for (const api of settings.peers)
    sides[api] = async () =>
      one(await runJob(await peerJob(python, 'torch_gpu.py', 1, flags({ api, ...options })), { timeout }));

const metrics = { seconds: { less: true }, firstSeconds: { less: true }, gigabytesPerSecond: { compared: false } };
const results = await compareSides(sides, { repetitions, calm, metrics, label: () => ({ device }) });
const rows = [['side', 's', 'first, s', 'GB/s', 'rankzero is × (min–max)']];
for (const { sides: measured, ratios } of results)
  for (const [side, { seconds, firstSeconds, gigabytesPerSecond }] of Object.entries(measured))
    rows.push([
      side,
      seconds.median,
      firstSeconds.median,
      gigabytesPerSecond.median,
      formatRatio(ratios[side]?.seconds),
    ]);
report('gpu/load', settings, results, rows);
