// The model of a run on this rank: rank 0 holds the checkpoint, the others start on meta, and wrapping brings each its shard.
// A resumed run starts on meta everywhere: its weights come from the training checkpoint.
import { dist } from '../distributed/index.ts';
import { AutoModelForCausalLM } from '../models/auto.ts';
import type { CausalLM } from '../models/causal_lm.ts';
import type { ModelConfig } from '../models/config.ts';
import { initEmptyWeights } from '../nn/init_empty_weights.ts';
import type { Recipe } from '../nn/recipe.ts';
import { applyTies } from '../nn/tied.ts';
import { applyActivationCheckpointing } from '../parallel/checkpointing.ts';
import { DelayedParamIniter } from '../parallel/delayed_param.ts';
import { FullyShardedDataParallel } from '../parallel/fsdp/fsdp.ts';
import { transform } from '../parallel/tensor/index.ts';
import type { FinetuneOptions } from './options.ts';
import type { LoadProgress } from './reporter.ts';

/** Values that somebody reads into the shards after wrapping. */
const readLater: Recipe = { writer: 'file', fileBytes: 0, read: () => {} };

/** A training checkpoint: its folder, and which of its parameters are tied. */
export interface ResumedFrom {
  readonly dir: string;
  readonly ties: readonly (readonly [string, string])[];
}

/** The model before it has memory. float32, for the masters. `resume`: the training checkpoint that its weights come from. */
export async function buildModel(dir: string, config: ModelConfig, resume: ResumedFrom | undefined): Promise<CausalLM> {
  const onMeta = (): CausalLM => initEmptyWeights(() => AutoModelForCausalLM.fromConfig(config, { dtype: 'float32' }));
  if (resume === undefined) {
    return dist.getRank() === 0 ? AutoModelForCausalLM.fromPretrained(dir, { dtype: 'float32' }) : onMeta();
  }
  const model = onMeta();
  applyTies(model, resume.ties);
  for (const parameter of model.parameters()) parameter.setRecipe(readLater);
  model.source = { dir };
  return model;
}

/** Wraps the model; blocks until the weights are in the shards, unless they are read later. Collective. */
export function wrapModel(
  whole: CausalLM,
  options: FinetuneOptions,
  resume: ResumedFrom | undefined,
  onLoad: (progress: LoadProgress) => void,
): FullyShardedDataParallel<CausalLM> {
  const sync = resume === undefined;
  const model = options.tp > 1 ? divide(whole, options, sync) : whole;
  if (options.activationCheckpointing) applyActivationCheckpointing(model, undefined, options);
  const initer = sync && dist.getRank() > 0 ? new DelayedParamIniter(model) : undefined;
  const wrap = (): FullyShardedDataParallel<CausalLM> =>
    new FullyShardedDataParallel(model, {
      shardingStrategy: options.strategy,
      hybridShardDegree: options.hybridShardDegree,
      mixedPrecision:
        options.precision === 'bfloat16' ? { paramDtype: 'bfloat16', reduceDtype: options.reducePrecision } : undefined,
      syncModuleStates: sync,
      paramInitFn: initer?.getParamInitFn(),
      postParamInitFn: initer?.getPostParamInitFn(),
      onProgress: sync ? onLoad : undefined,
    });
  const fsdp = initer ? initer.validateParamsAndBuffersInited(wrap) : wrap();
  fsdp.train();
  return fsdp;
}

function divide(whole: CausalLM, { sequenceParallel }: FinetuneOptions, sync: boolean): CausalLM {
  const model = transform(whole, { loadStateDictFromRank0: sync, sequenceParallel });
  if (!sync) for (const parameter of model.parameters()) parameter.setRecipe(readLater);
  return model;
}
