// The model of a run on this rank: rank 0 holds the checkpoint, the others start on meta, and wrapping brings each its shard.
// A resumed run starts on meta everywhere: its weights come from the training checkpoint.
import { addAdapterOf, readAdapterConfig } from '../adapt/files.ts';
import { applyLora } from '../adapt/lora.ts';
import { quantize } from '../adapt/quantize.ts';
import { fromRank0, onAllRanks } from '../distributed/agree.ts';
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
import type { FloatDType } from '../tensor/dtype.ts';
import type { FinetuneOptions } from './options.ts';
import type { LoadProgress } from './reporter.ts';

/** Values that somebody reads into the shards after wrapping. */
const readLater: Recipe = { writer: 'file', fileBytes: 0, read: () => {} };

/** A training checkpoint: its folder, and which of its parameters are tied. */
export interface ResumedFrom {
  readonly dir: string;
  readonly ties: readonly (readonly [string, string])[];
}

/** Whether an adapter is trained: the model itself then comes from its files, also when a run resumes. */
export const trainsAdapter = ({ loraR, adapter }: FinetuneOptions): boolean =>
  loraR !== undefined || adapter !== undefined;

/** What the parameters of the model are made in. Masters of what is trained are float32; a frozen model needs none. */
export const modelDtype = (options: FinetuneOptions): FloatDType =>
  trainsAdapter(options) ? options.precision : 'float32';

/** The fresh adapter that `options` ask for. */
export function addFreshAdapter(model: CausalLM, options: FinetuneOptions): void {
  applyLora(model, {
    r: options.loraR,
    alpha: options.loraAlpha,
    targetModules: options.loraTarget ?? 'all-linear',
    dropout: options.loraDropout,
    useRslora: options.loraRslora,
    useDora: options.loraDora,
    modulesToSave: options.loraModulesToSave,
    bias: options.loraBias,
  });
}

/** The model before it has memory. `resume`: the training checkpoint that its weights, or those of its adapter, come from. Collective. */
export async function buildModel(
  dir: string,
  config: ModelConfig,
  options: FinetuneOptions,
  resume: ResumedFrom | undefined,
): Promise<CausalLM> {
  const dtype = modelDtype(options);
  const onMeta = (): CausalLM => initEmptyWeights(() => AutoModelForCausalLM.fromConfig(config, { dtype }));
  if (resume === undefined || trainsAdapter(options)) {
    const model =
      dist.getRank() === 0
        ? await onAllRanks(dist.group, `loading ${dir}`, () => AutoModelForCausalLM.fromPretrained(dir, { dtype }))
        : await onAllRanks(dist.group, `loading ${dir}`, onMeta);
    const { adapter } = options;
    if (adapter !== undefined) {
      const json = await fromRank0(dist.group, `loading ${adapter}`, () => readAdapterConfig(adapter));
      await onAllRanks(dist.group, `loading ${adapter}`, () => addAdapterOf(model, adapter, json));
    } else if (options.loraR !== undefined) addFreshAdapter(model, options);
    return model;
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
  const sync = resume === undefined || trainsAdapter(options);
  if (options.quantize) quantize(whole, { scheme: options.quantize });
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
