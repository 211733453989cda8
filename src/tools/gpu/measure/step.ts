// One training step of the 1B-class model as finetune takes it: FSDP with float32 masters and bfloat16 compute, clipping, AdamW.
// Host clock around steps that are waited for, since the host's work is part of a step.

import { dist } from '../../../distributed/index.ts';
import { AutoModelForCausalLM } from '../../../models/auto.ts';
import { type AttentionKernels, native } from '../../../native.ts';
import { initEmptyWeights } from '../../../nn/init_empty_weights.ts';
import { AdamW } from '../../../optim/adamw.ts';
import { applyActivationCheckpointing } from '../../../parallel/checkpointing.ts';
import { DelayedParamIniter } from '../../../parallel/delayed_param.ts';
import { FullyShardedDataParallel as FSDP } from '../../../parallel/fsdp/fsdp.ts';
import type { Recomputation } from '../../../parallel/recomputation.ts';
import type { FloatDType } from '../../../tensor/dtype.ts';
import { fusionNames, setFusions } from '../../../tensor/fusions.ts';
import { memoryStats } from '../../../tensor/memory.ts';
import { scope } from '../../../tensor/scope.ts';
import { useDevice } from '../../../tensor/streams.ts';
import { isHopper } from '../attention.ts';
import type { Measure, PartOptions, Unit, UnitResult } from '../part.ts';
import { flopsPerToken, measuredConfig } from './model.ts';

export async function stepUnits(options: PartOptions, kernels: AttentionKernels): Promise<Unit[]> {
  const { batch, length } = options.size === 'small' ? { batch: 2, length: 8 } : { batch: 8, length: 2048 };
  if (kernels === 'hopper' && !isHopper()) return [];
  const unit = (name: string, set: (training: Training) => void = () => {}): Unit => ({
    name,
    run: () => {
      native.cudaSetAttention(kernels); // the process is this unit's own
      const training: Training = { unit: name, batch, length, recompute: undefined, reduceDtype: 'float32' };
      set(training);
      return trainingStep(training, options);
    },
  });
  const name = `${batch}×${length} tokens, ${kernels}`;
  const variants = Object.entries(settings).map(([what, set]) => unit(`${name}, ${what}`, set));
  return [unit(name), ...variants].slice(0, options.filter.length > 0 ? undefined : 1);
}

interface Training {
  readonly unit: string;
  readonly batch: number;
  readonly length: number;
  recompute: Recomputation | undefined;
  reduceDtype: FloatDType;
}

/** The same step with one setting other than the default, for whoever asks for units by name. */
const settings: Readonly<Record<string, (training: Training) => void>> = {
  'nothing fused': () => setFusions([]),
  ...Object.fromEntries(
    fusionNames.map((left) => [`without ${left}`, () => setFusions(fusionNames.filter((name) => name !== left))]),
  ),
  'four GEMM proposals timed': () => native.cudaSetGemmTrials(4),
  'float32 logits': () => native.cudaSetNarrowLogits(false),
  'gradients reduced in bfloat16': (training) => {
    training.reduceDtype = 'bfloat16';
  },
  'layers run again': (training) => {
    training.recompute = 'all';
  },
  'layers run again, selectively': (training) => {
    training.recompute = 'selective';
  },
};

async function trainingStep(
  { unit, batch, length, recompute, reduceDtype }: Training,
  { size, peak }: PartOptions,
): Promise<UnitResult> {
  const [warmUp, steps] = size === 'small' ? [1, 2] : [3, 10];
  await dist.initProcessGroup({ quiet: true });
  useDevice('cuda');
  const config = measuredConfig(size);
  const model = initEmptyWeights(() => AutoModelForCausalLM.fromConfig(config));
  let numParams = 0;
  for (const [, parameter] of model.namedParameters()) numParams += parameter.numel;
  if (recompute) applyActivationCheckpointing(model, undefined, { recompute });
  const initer = new DelayedParamIniter(model);
  const fsdp = new FSDP(model, {
    paramInitFn: initer.getParamInitFn(),
    postParamInitFn: initer.getPostParamInitFn(),
    mixedPrecision: { paramDtype: 'bfloat16', reduceDtype },
  });
  const optimizer = new AdamW(fsdp.namedParameters(), { lr: 1e-4 });
  let random = 1;
  const token = (): number => {
    random = (random * 48271) % 2147483647;
    return random % config.vocabSize;
  };
  const times: number[] = [];
  const losses: number[] = [];
  for (let step = 0; step < warmUp + steps; step++) {
    const inputIds = Array.from({ length: batch }, () => Array.from({ length }, token));
    const start = performance.now();
    const loss = scope(() => {
      const { loss } = fsdp.forward({ inputIds, labels: inputIds });
      loss.backward();
      fsdp.clipGradNorm(1);
      optimizer.step();
      optimizer.zeroGrad();
      return loss;
    });
    losses.push(loss.item()); // in the order of the stream: after the optimizer
    loss.dispose();
    times.push((performance.now() - start) / 1000);
  }
  const measured = times.slice(warmUp).sort((a, b) => a - b);
  const seconds = measured[measured.length >> 1]!;
  const tokens = batch * length;
  const flops = (tokens * flopsPerToken(config, numParams, length)) / seconds / 1e12;
  const milliseconds = 1000 * seconds;
  const measures: Measure[] = [
    { name: 'tokens', value: tokens / seconds, unit: 'tokens/s', milliseconds },
    {
      name: 'model arithmetic',
      value: flops,
      unit: 'TFLOP/s',
      milliseconds,
      ...(peak ? { fraction: flops / peak, of: 'peak (MFU)' } : {}),
    },
    { name: 'peak memory of tensors', value: memoryStats('cuda').totalPeak / 1e9, unit: 'GB' },
  ];
  const first = losses[0]!;
  const chance = Math.log(config.vocabSize);
  const failures = [];
  // Fresh weights know nothing: the first loss is that of guessing.
  if (!(Math.abs(first - chance) < 0.1 * chance + 0.5))
    failures.push(`the first loss is ${first}, and that of guessing ${chance}`);
  if (losses.some((loss) => !Number.isFinite(loss))) failures.push(`losses are not finite: ${losses.join(', ')}`);
  dist.destroyProcessGroup();
  return { unit, failures, measures };
}
