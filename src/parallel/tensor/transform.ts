// transform: a model whose layers are divided over a tensor-parallel group, from one that is not. Recipes are composed; no
// byte of a weight moves before the wrap.
import { broadcastJson } from '../../distributed/exchange.ts';
import { state } from '../../distributed/state.ts';
import { familyOf, supportedFamilies } from '../../models/auto.ts';
import { CausalLM } from '../../models/causal_lm.ts';
import type { ModelConfig } from '../../models/config.ts';
import { copyAdapters } from '../../nn/lora.ts';
import type { Module } from '../../nn/module.ts';
import { currentRecipe, type Parameter, withMetaParameters } from '../../nn/parameter.ts';
import { FromRank0Recipe, partOf, ReceiveRecipe } from '../../nn/recipe.ts';
import { applyTies, tiedNames } from '../../nn/tied.ts';
import type { FloatDType } from '../../tensor/dtype.ts';
import { markDivided, type TensorParallel } from './context.ts';
import { gradientGroup, parallelize } from './parallelize.ts';

export interface TransformOptions {
  /** Ignored for a model on meta. Only `cpu` and `meta` are built. */
  device?: 'cpu' | 'meta' | undefined;
  /** Of the new model's parameters. Default: the original's. */
  dtype?: FloatDType | undefined;
  /** Default: the model's own. */
  config?: ModelConfig | undefined;
  /** The weights are rank 0's, sent while FSDP wraps (syncModuleStates is then mandatory). Default false: fresh weights. */
  loadStateDictFromRank0?: boolean | undefined;
  /** Divides the rows between the layers too: less activation memory, the same results. Default false. */
  sequenceParallel?: boolean | undefined;
}

/**
 * A new model whose linear, embedding and attention layers are divided over the tensor-parallel group of this rank (init),
 * ready for FSDP; mirrors torch.sagemaker.transform. Parameters keep their names; `parameter.placement` says which part of
 * the whole each is. With any parameter on meta the new model is on meta.
 *
 * With `loadStateDictFromRank0` only rank 0's weights count. In its tensor-parallel group the parameters report device
 * `cpu` at once; reading one there before the wrap is a collective of that group, writing one ends its recipe. Elsewhere
 * they stay on meta, or wait for rank 0. Collective. Errors: an unsupported family, degrees that do not divide the model,
 * a parameter on meta on rank 0.
 */
export function transform<M extends Module>(model: M, options: TransformOptions = {}): M {
  if (!state.isInitialized) throw new Error('transform: call init({ tensorParallelDegree }) first');
  if (!(model instanceof CausalLM)) {
    throw new Error(
      `transform: ${model.constructor.name} is not a model of a supported family; supported: ${supportedFamilies().join(', ')}`,
    );
  }
  return transformCausalLM(model, options) as unknown as M;
}

function transformCausalLM(model: CausalLM, options: TransformOptions): CausalLM {
  const config = options.config ?? model.config;
  const family = familyOf(config);
  const size = state.tpSize;
  if (!family.parallelPlan)
    throw new Error(
      `transform: model_type "${config.modelType}" has no parallel plan; supported: ${supportedFamilies().join(', ')}`,
    );
  const originals = new Map(model.namedParameters({ removeDuplicate: false }));
  const first = [...originals.values()][0];
  const onMeta = [...originals.values()].some((parameter) => parameter.device === 'meta') || options.device === 'meta';
  const loads = options.loadStateDictFromRank0 ?? false;
  if (loads) refuseMetaOnRank0(model);

  const tp: TensorParallel = {
    group: state.tpProcessGroup!,
    rank: state.tpRank,
    size,
    sequenceParallel: (options.sequenceParallel ?? false) && size > 1,
    loadsFromRank0: loads,
  };
  const dtype = options.dtype ?? (first!.dtype as FloatDType);
  const out = withMetaParameters(() => {
    const fresh = family.create(config, dtype);
    applyTies(fresh, tiedNames(model));
    if (size > 1) parallelize(fresh, family.parallelPlan!, tp, state.deviceMesh!);
    copyAdapters(model, fresh, (placement) => gradientGroup(placement, state.deviceMesh!));
    return fresh;
  });
  out.source = model.source;
  markDivided(out, tp);
  for (const [name, parameter] of out.namedParameters()) {
    const original = originals.get(name)!;
    parameter.requiresGrad = original.requiresGrad;
    parameter.checkpointDtype = original.checkpointDtype;
    if (original.quantized) parameter.quantize(original.quantized.storage);
    if (loads) receive(parameter, original, onMeta, tp);
    else if (!onMeta) parameter.resetParameters();
  }
  out.train(model.training);
  return out;
}

/** What a parameter is before the wrap, when rank 0 alone holds the weights. */
function receive(parameter: Parameter, original: Parameter, onMeta: boolean, tp: TensorParallel): void {
  const isSource = state.dpRank === 0 && tp.rank === 0;
  if (isSource) {
    const whole = currentRecipe(original);
    parameter.setRecipe(tp.size > 1 ? new FromRank0Recipe(tp.group, partOf(whole, parameter.placement)) : whole);
  } else if (state.dpRank === 0) parameter.setRecipe(new FromRank0Recipe(tp.group, undefined));
  else if (!onMeta) parameter.setRecipe(new ReceiveRecipe());
}

/** The same error on every rank. */
function refuseMetaOnRank0(model: CausalLM): void {
  const group = state.worldGroup;
  const name = [...model.namedParameters()].find(([, parameter]) => parameter.device === 'meta')?.[0] ?? '';
  const left = broadcastJson(group, group.rank === 0 ? name : '');
  if (left !== '')
    throw new Error(
      `transform: with loadStateDictFromRank0 rank 0 must hold every weight, but its ${left} is on meta; load the checkpoint there (fromPretrained)`,
    );
}
