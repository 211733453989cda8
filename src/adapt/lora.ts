// LoRA: the base is frozen, small matrices beside its linear layers are trained. Before the model is divided or wrapped.
import { settle } from '../core/finally.ts';
import type { CausalLM } from '../models/causal_lm.ts';
import { adaptersOf, addAdapter, layersOf, type ModelAdapter, type ModelAdapters } from '../nn/lora.ts';
import type { Module } from '../nn/module.ts';
import { currentRecipe, Parameter, withMetaParameters } from '../nn/parameter.ts';
import { tensorParallelOf } from '../parallel/tensor/context.ts';
import { type LoraConfig, type LoraOptions, resolveLoraOptions } from './config.ts';
import { loraLayers, savedModules } from './targets.ts';

/** The name of an adapter that is given none. */
export const defaultAdapter = 'default';

/**
 * Freezes `model` and gives it an adapter that is trained: LoRA matrices beside the linear layers that `options` name, float32, drawn
 * like weights (lazily; on meta where the model is). Returns the model, changed in place. Mirrors peft.get_peft_model.
 *
 * Call it before transform and FSDP; every rank with the same options. `name`: where a model has several adapters; the last one is
 * active. Errors, before anything is changed, name options that are wrong, modules that do not exist and layers that cannot be adapted.
 */
export function applyLora<M extends CausalLM>(model: M, options: LoraOptions = {}, name: string = defaultAdapter): M {
  addLora(model, resolveLoraOptions(options), name);
  return model;
}

/** @internal */
export function addLora(model: CausalLM, config: LoraConfig, name: string): void {
  if (tensorParallelOf(model)) throw new Error('applyLora: the model is divided already; call it before transform');
  if ([...model.parameters()].some(({ owner }) => owner))
    throw new Error('applyLora: FSDP has wrapped the model already; call it before');
  const before = adaptersOf(model);
  refuseMerged('applyLora', before);
  if (before?.byName.has(name))
    throw new Error(`applyLora: the model has an adapter "${name}" already; give another name`);
  if (!/^[^.]+$/.test(name)) throw new RangeError(`applyLora: the name of an adapter has no dots, but is "${name}"`);
  const layers = loraLayers(model, config);
  const saved = savedModules(model, config);
  const biases = biasesOf(model, config, layers);
  const others = [...(before?.byName ?? [])].filter(([, { trained }]) => trained.size > 0);
  if (others.length > 0 || (before && before.byName.size > 0 && saved.size + biases.length > 0))
    throw new Error(
      'applyLora: adapters with modulesToSave or biases change the model itself, so they cannot be beside others',
    );
  model.requiresGrad_(false);
  const trained = [...biases, ...[...saved].flatMap(([path, module]) => ownParameters(model, path, module))];
  for (const parameter of trained) parameter.requiresGrad = true;
  const names = new Set(trained.map((parameter) => parameter.name));
  addAdapter(model, name, { layers, trained: names, config });
  setAdapter(model, name);
}

/** Makes an adapter that the model has the active one: it acts, and it is trained. Before FSDP wraps the model, which reads what is trained. */
export function setAdapter(model: CausalLM, name: string): void {
  const { adapters, adapter } = adapterOf(model, name);
  refuseMerged('setAdapter', adapters);
  if ([...model.parameters()].some(({ owner }) => owner))
    throw new Error('setAdapter: FSDP has wrapped the model, with what was trained then; call it before');
  for (const other of adapters.byName.keys()) {
    for (const [, , { a, b, magnitude }] of layersOf(model, other))
      for (const parameter of [a, b, magnitude]) if (parameter) parameter.requiresGrad = other === name;
  }
  for (const parameter of model.parameters()) if (adapter.trained.has(parameter.name)) parameter.requiresGrad = true;
  adapters.active = name;
}

/** Runs `fn` with the base alone, as if there were no adapter; `fn` may be async. Error: an adapter that changes the model itself. */
export function disableAdapter<T>(model: Module, fn: () => T): T {
  const { name, adapters, adapter } = adapterOf(model);
  if (adapter.trained.size > 0)
    throw new Error(
      `disableAdapter: the adapter "${name}" trains parameters of the model itself (${[...adapter.trained].slice(0, 3).join(', ')}), of which there is no other copy`,
    );
  refuseMerged('disableAdapter', adapters);
  adapters.disabled++;
  return settle(fn, () => {
    adapters.disabled--;
  });
}

function refuseMerged(what: string, adapters: ModelAdapters | undefined): void {
  if (adapters?.merged !== undefined)
    throw new Error(`${what}: the adapter "${adapters.merged}" is merged into the weights; call unmergeAdapter first`);
}

/** @internal The adapter `name`, by default the active one. Error: there is none. */
export function adapterOf(
  model: Module,
  name?: string,
): { name: string; adapters: ModelAdapters; adapter: ModelAdapter } {
  const adapters = adaptersOf(model);
  const wanted = name ?? adapters?.active;
  const adapter = wanted === undefined ? undefined : adapters?.byName.get(wanted);
  if (!adapters || wanted === undefined || !adapter) {
    const there = [...(adapters?.byName.keys() ?? [])].join(', ') || 'none';
    throw new Error(`the model has no adapter${name === undefined ? '' : ` "${name}"`}; it has ${there}`);
  }
  return { name: wanted, adapters, adapter };
}

/** The biases that are trained. Errors: a choice that leaves none. */
function biasesOf(model: CausalLM, { bias }: LoraConfig, layers: ReadonlyMap<string, unknown>): Parameter[] {
  if (bias === 'none') return [];
  const biases: Parameter[] = [];
  for (const [path, module] of model.namedModules()) {
    const isWanted = bias === 'all' || layers.has(path);
    const own = isWanted ? (Reflect.get(module, 'bias') as unknown) : undefined;
    if (own instanceof Parameter) biases.push(own);
  }
  if (biases.length === 0) throw new Error(`applyLora: bias is ${bias}, but there are no such biases in the model`);
  return biases;
}

/** The parameters of a module that is trained whole. A head that is tied to the embedding gets a weight of its own. */
function ownParameters(model: CausalLM, path: string, module: Module): Parameter[] {
  if (module === model.outputHead && model.isTied) untie(model, path);
  return [...module.parameters()];
}

function untie({ inputEmbedding, outputHead }: CausalLM, path: string): void {
  const { weight } = inputEmbedding;
  const make = (): Parameter => new Parameter(weight.fullShape, weight.dtype, weight.init);
  const own = weight.device === 'meta' ? withMetaParameters(make) : make();
  own.name = `${path}.weight`;
  own.checkpointDtype = weight.checkpointDtype;
  if (weight.device !== 'meta') own.setRecipe(currentRecipe(weight));
  outputHead.weight = own;
}
