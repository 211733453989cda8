// An adapter put into the weights, and taken out again.
import { lowRankProduct } from '../autograd/functions/dora.ts';
import type { CausalLM } from '../models/causal_lm.ts';
import { native } from '../native.ts';
import type { Linear } from '../nn/layers.ts';
import { adaptedSquares, type LoraFactors, layersOf } from '../nn/lora.ts';
import { MergedRecipe, multiplyRows } from '../nn/lora_recipes.ts';
import { currentRecipe, type Parameter } from '../nn/parameter.ts';
import type { Recipe } from '../nn/recipe.ts';
import type { FullyShardedDataParallel } from '../parallel/fsdp/fsdp.ts';
import { scope } from '../tensor/scope.ts';
import { adapterOf } from './lora.ts';

/**
 * Puts the active adapter into the weights: W + scale · B A, in the dtype of W, and the model computes with that alone; savePretrained
 * then writes a checkpoint that needs no adapter. Weights that nobody has read stay unread: the sum is made when they are. With FSDP it
 * is done unit by unit, in the shards. Collective there. Mirrors PEFT's merge_adapter. Errors: no active adapter, or one is merged already.
 */
export function mergeAdapter(model: CausalLM | FullyShardedDataParallel<CausalLM>): void {
  const fsdp = 'module' in model ? model : undefined;
  const module = 'module' in model ? model.module : model;
  const { name, adapters } = adapterOf(module);
  if (adapters.merged !== undefined)
    throw new Error(`mergeAdapter: the adapter "${adapters.merged}" is merged already`);
  const layers = new Map([...layersOf(module, name)].map(([, linear, factors]) => [linear, factors]));
  const quantized = [...layers.keys()].find(({ weight }) => weight.quantized);
  if (quantized)
    throw new Error(
      `mergeAdapter: ${quantized.weight.name} is quantised; load the model without that, and merge the adapter into it`,
    );
  if (fsdp) inShards(fsdp, layers, (linear, factors) => addInPlace(linear, factors, 1));
  else for (const [linear, factors] of layers) mergeLayer(linear, factors, adapters.unmerged);
  adapters.merged = name;
}

/**
 * Takes the adapter out of the weights again. Weights that came from files are those of the files; others have what was added
 * subtracted, which rounds. Error: none is merged; one with lengths of rows (DoRA) whose weights cannot be read again.
 */
export function unmergeAdapter(model: CausalLM | FullyShardedDataParallel<CausalLM>): void {
  const fsdp = 'module' in model ? model : undefined;
  const module = 'module' in model ? model.module : model;
  const { name, adapters } = adapterOf(module);
  // Another cannot have become active since: setAdapter and applyLora refuse it.
  if (adapters.merged === undefined) throw new Error('unmergeAdapter: no adapter is merged');
  const layers = new Map([...layersOf(module, name)].map(([, linear, factors]) => [linear, factors]));
  const isLost = [...layers].find(
    ([{ weight }, { magnitude }]) => magnitude && (fsdp || !adapters.unmerged.has(weight)),
  );
  if (isLost)
    throw new Error(
      `unmergeAdapter: ${isLost[0].weight.name} was scaled row by row and cannot be brought back; load the model again`,
    );
  if (fsdp) inShards(fsdp, layers, (linear, factors) => addInPlace(linear, factors, -1));
  else for (const [linear, factors] of layers) unmergeLayer(linear, factors, adapters.unmerged);
  adapters.unmerged.clear();
  adapters.merged = undefined;
}

function mergeLayer(linear: Linear, factors: LoraFactors, before: Map<Parameter, Recipe>): void {
  const { weight } = linear;
  if (weight.isReal) {
    addInPlace(linear, factors, 1);
    return;
  }
  const recipe = currentRecipe(weight);
  before.set(weight, recipe);
  weight.setRecipe(new MergedRecipe(recipe, weight.size(1), factors), weight.device);
}

function unmergeLayer(linear: Linear, factors: LoraFactors, before: ReadonlyMap<Parameter, Recipe>): void {
  const { weight } = linear;
  const recipe = before.get(weight);
  if (!recipe) {
    addInPlace(linear, factors, -1);
    return;
  }
  weight.setRecipe(recipe, weight.device);
}

/** w += sign · factor · b a; with DoRA the rows then get their lengths. This rank's part of each. */
function addInPlace({ weight }: Linear, factors: LoraFactors, sign: 1 | -1): void {
  const { a, b, magnitude, settings } = factors;
  scope(() => {
    using w = weight.detach();
    using squares = magnitude && adaptedSquares(weight, factors);
    using update = lowRankProduct(a, b, sign * settings.factor, w);
    native.add(w.handle, w.handle, update.handle);
    if (magnitude && squares) multiplyRows(w, magnitude, squares);
  });
}

/** Runs `change` for every layer while its unit is whole, and keeps what it wrote. */
function inShards(
  fsdp: FullyShardedDataParallel<CausalLM>,
  layers: ReadonlyMap<Linear, LoraFactors>,
  change: (linear: Linear, factors: LoraFactors) => void,
): void {
  const byWeight = new Map([...layers].map(([linear, factors]) => [linear.weight, [linear, factors] as const]));
  fsdp.eachUnitWhole((parameters) => {
    for (const parameter of parameters) {
      const layer = byWeight.get(parameter);
      if (layer) change(...layer);
    }
  });
}
