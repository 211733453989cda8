// What can be converted: a Hugging Face folder, or a sharded checkpoint with the config of its model.
import { stat } from 'node:fs/promises';
import { join } from 'node:path';
import { loadAdapter } from '../../adapt/files.ts';
import { mergeAdapter } from '../../adapt/merge.ts';
import { resolveModel } from '../../checkpoint/hub.ts';
import { pieceKey, stateName } from '../../checkpoint/sharded-format.ts';
import { ShardedCheckpoint } from '../../checkpoint/sharded-reader.ts';
import type { CheckpointSource } from '../../checkpoint/source.ts';
import type { JsonObject } from '../../core/json.ts';
import { AutoModelForCausalLM } from '../../models/auto.ts';
import type { CausalLM } from '../../models/causal_lm.ts';
import { AutoConfig } from '../../models/config.ts';
import { initEmptyWeights } from '../../nn/init_empty_weights.ts';
import { ownParametersOf } from '../../nn/lora.ts';
import { currentRecipe } from '../../nn/parameter.ts';
import { Placement } from '../../nn/placement.ts';
import { PartRecipe } from '../../nn/recipe.ts';
import { applyTies, tiedNames } from '../../nn/tied.ts';
import type { DType } from '../../tensor/dtype.ts';
import type { Shape, Tensor } from '../../tensor/tensor.ts';

export interface StoredValues {
  name: string;
  /** Of the whole. */
  shape: Shape;
  /** As stored. */
  dtype: DType;
  /** Optimizer steps, for moments. */
  step?: number | undefined;
  /** Enqueues: `target` gets elements `start` … of this part. */
  read(target: Tensor, start: number, placement: Placement): void;
}

export interface Source {
  /** On meta, or lazy: names, shapes and ties. */
  model: CausalLM;
  parameters: StoredValues[];
  expAvg: StoredValues[];
  expAvgSq: StoredValues[];
  /** The optimizer whose state is there. */
  optimizer?: string | undefined;
  /** dtype of each parameter in a Hugging Face folder. */
  dtypes: Record<string, DType>;
  ties: readonly (readonly [string, string])[];
  state: JsonObject;
  companions: CheckpointSource;
  close(): void;
}

const isFile = (path: string): Promise<boolean> =>
  stat(path).then(
    (s) => s.isFile(),
    () => false,
  );

/** Opens either kind. `model`: folder of the config and tokenizer, for a sharded checkpoint that does not name one. */
export async function openSource(
  source: string,
  model: string | undefined,
  adapter: string | undefined,
): Promise<Source> {
  if (!(await isFile(join(source, stateName)))) return openPretrained(source, adapter);
  if (adapter !== undefined)
    throw new Error(`convert: ${source} is a sharded checkpoint; an adapter is merged into a Hugging Face folder`);
  return openSharded(source, model);
}

async function openPretrained(source: string, adapter: string | undefined): Promise<Source> {
  const dir = await resolveModel(source);
  const model = await AutoModelForCausalLM.fromPretrained(dir);
  if (adapter !== undefined) mergeAdapter(await loadAdapter(model, adapter));
  const parameters = ownParametersOf(model).map(([name, parameter]) => {
    const recipe = currentRecipe(parameter);
    return {
      name,
      shape: parameter.shape,
      dtype: parameter.checkpointDtype ?? parameter.dtype,
      read: (target: Tensor, start: number, placement: Placement) =>
        new PartRecipe(recipe, placement).read(target, start),
    };
  });
  return {
    model,
    parameters,
    expAvg: [],
    expAvgSq: [],
    dtypes: Object.fromEntries(parameters.map(({ name, dtype }) => [name, dtype])),
    ties: tiedNames(model),
    state: {},
    companions: { dir },
    close: () => {},
  };
}

async function openSharded(dir: string, given: string | undefined): Promise<Source> {
  const checkpoint = await ShardedCheckpoint.open(dir);
  try {
    const { state, ties, dtypes } = checkpoint.manifest;
    const own = (state.options as { model?: unknown } | undefined)?.model;
    const name = given ?? (typeof own === 'string' ? own : undefined);
    if (name === undefined)
      throw new Error(
        `${dir}: this checkpoint does not say which model it is of; give --model, the folder it was made from`,
      );
    const modelDir = await resolveModel(name);
    const config = await AutoConfig.fromPretrained(modelDir);
    if ([...checkpoint.tensors.keys()].some((key) => key.includes('.lora_A.')))
      throw new Error(
        `${dir} holds an adapter alone, without its model: go on with --resume, and the run saves the adapter in PEFT's format`,
      );
    const model = initEmptyWeights(() => AutoModelForCausalLM.fromConfig(config));
    applyTies(model, ties);
    const parameters = [...model.namedParameters()];
    const problems = parameters
      .map(([key, { shape }]) => [key, shape, checkpoint.tensors.get(pieceKey('parameter', key))?.shape] as const)
      .filter(([, shape, stored]) => stored?.join() !== shape.join())
      .map(([key, shape, stored]) => `${key} is ${stored ? `[${stored}]` : 'missing'} but the config wants [${shape}]`);
    const known = new Set(parameters.map(([key]) => pieceKey('parameter', key)));
    for (const key of checkpoint.tensors.keys())
      if (key.startsWith('parameter/') && !known.has(key)) problems.push(`${key.slice(10)} is not part of the model`);
    if (problems.length > 0)
      throw new Error(
        `${dir} is a checkpoint of another model than ${modelDir}: ${problems.slice(0, 8).join('; ')}` +
          (problems.length > 8 ? ` and ${problems.length - 8} more` : ''),
      );
    const stored = (kind: 'parameter' | 'exp_avg' | 'exp_avg_sq'): StoredValues[] =>
      parameters.flatMap(([key]) => {
        const piece = pieceKey(kind, key);
        const tensor = checkpoint.tensors.get(piece);
        if (!tensor) return [];
        const { shape, step } = tensor;
        const dtype = tensor.pieces[0]!.dtype;
        return [
          {
            name: key,
            shape,
            dtype,
            step,
            read: (target, start, placement) =>
              checkpoint.read(piece, target, (placement ?? new Placement(shape)).pieces(start, target.numel)),
          },
        ];
      });
    return {
      model,
      parameters: stored('parameter'),
      expAvg: stored('exp_avg'),
      expAvgSq: stored('exp_avg_sq'),
      optimizer: checkpoint.optimizer,
      dtypes: { ...dtypes },
      ties,
      state,
      companions: { dir: modelDir },
      close: () => checkpoint.close(),
    };
  } catch (error) {
    checkpoint.close();
    throw error;
  }
}
