// What does an adapter save? LoRA on all linear layers against full fine-tuning, and against PEFT with FSDP2: tokens a second, and the
// peak of tensors on a rank.
import { compareSides } from './lib/compare.mjs';
import { marksOf } from './lib/job.mjs';
import { modelFolder } from './lib/models.mjs';
import { readOptions } from './lib/options.mjs';
import { formatRatio, report } from './lib/report.mjs';
import { runOurs, runPeer, speedOf } from './lib/train_runs.mjs';

const settings = readOptions('Tokens a second and memory of LoRA beside full fine-tuning.', {
  model: { default: 'medium', help: 'small (32M parameters) or medium (254M)' },
  precision: { default: ['float32', 'bfloat16'], help: 'float32, bfloat16 (base and computation), or both' },
  ranks: { default: 2, help: 'world size' },
  lora: { default: 16, help: 'rank of the adapter' },
  steps: { default: 4, quick: 1, help: 'measured steps a run; two more come before' },
  batch: { default: 2, quick: 1, help: 'sequences a rank' },
  length: { default: 256, quick: 8, help: 'tokens a sequence' },
});
const { repetitions, calm, python, ranks, lora, steps, batch, length } = settings;
const dir = modelFolder(settings.model);

const metrics = {
  tokensPerSecond: { less: false },
  stepSeconds: { less: true, compared: false },
  peakBytes: { less: true },
};

async function ours(options) {
  const run = await runOurs(ranks, { dir, threads: 1, steps, batch, length, ...options });
  const peaks = marksOf(run.marks, 'done').map(({ allocatedPeakBytes }) => allocatedPeakBytes);
  return { run: { ...speedOf(run), peakBytes: Math.max(...peaks) } };
}

const results = [];
for (const precision of settings.precision) {
  process.stderr.write(`${settings.model}, ${precision}, ${ranks} ranks\n`);
  const sides = {
    lora: () => ours({ precision, lora }),
    full: () => ours({ precision }),
  };
  // The memory of full fine-tuning is measured in float32.
  if (precision !== 'float32') sides['full, float32'] = () => ours({ precision: 'float32' });
  if (python)
    sides.peft = async () => ({
      run: speedOf(await runPeer(python, 'fsdp2', ranks, { dir, threads: 1, precision, steps, batch, length, lora })),
    });
  const label = () => ({ precision, ranks });
  results.push(...(await compareSides(sides, { repetitions, calm, metrics, label })));
}

const rows = [['precision', 'side', 'tokens/s', 's/step', 'peak MB a rank', 'lora is × in tokens/s', '× in bytes']];
for (const { precision, sides, ratios } of results) {
  for (const [side, { tokensPerSecond, stepSeconds, peakBytes }] of Object.entries(sides)) {
    const megabytes = peakBytes && Math.round(peakBytes.median / 1e6);
    const [speed, bytes] = ['tokensPerSecond', 'peakBytes'].map((metric) => ratios[side]?.[metric]);
    rows.push([
      precision,
      side,
      tokensPerSecond.median,
      stepSeconds.median,
      megabytes ?? '',
      formatRatio(speed),
      bytes ? formatRatio(bytes) : '',
    ]);
  }
}
report('adapters', settings, results, rows);
