// Which layers of a model an adapter is for, by PEFT's rules, and of what rank and scale each is.
import { nearest } from '../core/nearest.ts';
import { type CausalLM, CausalLMHead } from '../models/causal_lm.ts';
import { linearLayers } from '../models/linear_layers.ts';
import { Linear } from '../nn/layers.ts';
import type { LoraSettings } from '../nn/lora.ts';
import type { Module } from '../nn/module.ts';
import type { LoraConfig } from './config.ts';

/** PEFT's default targets, by model_type. */
const defaultTargets: Readonly<Record<string, readonly string[]>> = {
  gpt_neox: ['query_key_value'],
  llama: ['q_proj', 'v_proj'],
  mistral: ['q_proj', 'v_proj'],
  mixtral: ['q_proj', 'v_proj'],
  qwen2: ['q_proj', 'v_proj'],
  qwen3: ['q_proj', 'v_proj'],
};

/**
 * The settings of every layer that `config` adapts, by path. Errors: names that are no linear layer of the model, layers that cannot
 * have an adapter, patterns that match none.
 */
export function loraLayers(model: CausalLM, config: LoraConfig): Map<string, LoraSettings> {
  const linears = new Map([...model.namedModules()].filter(([, module]) => module instanceof Linear));
  const together = runTogether(model);
  const { targetModules = defaultTargets[model.config.modelType] } = config;
  if (!targetModules) {
    const names = [...new Set([...linears.keys()].map(lastName))].join(', ');
    throw new Error(
      `applyLora: there are no default targets for model_type "${model.config.modelType}"; give targetModules, of ${names}`,
    );
  }
  const isTarget = targetTest(targetModules, [...linears.keys()]);
  const isExcluded = excludeTest(config);
  const all = new Map(linearLayers(model));
  const paths = [...linears.keys()].filter((path) => {
    if (targetModules === 'all-linear') return all.has(path) && !isExcluded(path);
    return isTarget(path) && isInLayers(path, config) && !isExcluded(path);
  });
  if (paths.length === 0)
    throw new Error(`applyLora: targetModules ${JSON.stringify(targetModules)} leave no linear layer of the model`);
  for (const path of paths) {
    const block = together.get(path);
    if (block !== undefined)
      throw new Error(`applyLora: ${path} is run by ${block} together with others, so it cannot have an adapter`);
    if (linears.get(path) instanceof CausalLMHead)
      throw new Error(
        `applyLora: ${path} is the output head, which cannot have an adapter; modulesToSave trains it whole`,
      );
  }
  const quantized = config.useDora && paths.find((path) => (linears.get(path) as Linear).weight.quantized);
  if (quantized)
    throw new Error(`applyLora: ${quantized}.weight is quantised, and useDora measures its rows; leave useDora out`);
  checkPatterns('rankPattern', config.rankPattern, paths);
  checkPatterns('alphaPattern', config.alphaPattern, paths);
  return new Map(paths.map((path) => [path, settingsOf(path, config, linears.get(path) as Linear)]));
}

/** The modules that `modulesToSave` names, by path. Errors: names that are none, modules without parameters. */
export function savedModules(model: CausalLM, { modulesToSave }: LoraConfig): Map<string, Module> {
  const modules = new Map(model.namedModules());
  const found = new Map<string, Module>();
  for (const name of modulesToSave) {
    const matching = [...modules].filter(([path]) => path === name || path.endsWith(`.${name}`));
    if (matching.length === 0) throw new Error(`applyLora: modulesToSave: ${unknownName(name, [...modules.keys()])}`);
    for (const [path, module] of matching) {
      if (module === model.inputEmbedding && model.isTied)
        throw new Error(
          `applyLora: modulesToSave: ${path} is tied to the output head, which would be trained with it; name the head, which is untied`,
        );
      if ([...module.parameters()].length === 0) throw new Error(`applyLora: modulesToSave: ${path} has no parameters`);
      found.set(path, module);
    }
  }
  return found;
}

/** By path of a linear layer that an atomic module reads without running it: the path of that module. */
function runTogether(model: Module): Map<string, string> {
  const inside = new Map<string, string>();
  for (const [path, module] of model.namedModules()) {
    if (!module.isAtomic) continue;
    for (const [below, inner] of module.namedModules(path)) if (inner !== module) inside.set(below, path);
  }
  return inside;
}

function targetTest(targets: readonly string[] | string, paths: readonly string[]): (path: string) => boolean {
  if (typeof targets === 'string') return targets === 'all-linear' ? () => true : fullMatch('targetModules', targets);
  const unknown = targets.filter((name) => !paths.some((path) => endsWith(path, name)));
  if (unknown.length > 0)
    throw new Error(`applyLora: targetModules: ${unknown.map((name) => unknownName(name, paths)).join('; ')}`);
  return (path) => targets.some((name) => endsWith(path, name));
}

function excludeTest({ excludeModules: given, modulesToSave }: LoraConfig): (path: string) => boolean {
  const isExcluded =
    typeof given === 'string'
      ? fullMatch('excludeModules', given)
      : (path: string) => (given ?? []).some((name) => endsWith(path, name));
  const isWithin = (path: string, name: string): boolean => `.${path}.`.includes(`.${name}.`);
  return (path) => isExcluded(path) || modulesToSave.some((name) => isWithin(path, name));
}

const endsWith = (path: string, name: string): boolean => path === name || path.endsWith(`.${name}`);
const lastName = (path: string): string => path.slice(path.lastIndexOf('.') + 1);

function unknownName(name: string, paths: readonly string[]): string {
  const near = nearest(name, [...new Set(paths.flatMap((path) => [path, lastName(path)]))]);
  return `the model has no linear layer "${name}"${near === undefined ? '' : `; did you mean ${near}?`}`;
}

function fullMatch(option: string, pattern: string): (path: string) => boolean {
  try {
    const expression = new RegExp(`^(?:${pattern})$`);
    return (path) => expression.test(path);
  } catch (cause) {
    throw new RangeError(`applyLora: ${option}: ${(cause as Error).message}`, { cause });
  }
}

function isInLayers(path: string, { layers, layersPattern, targetModules }: LoraConfig): boolean {
  if (!layers) return true;
  if (typeof targetModules === 'string')
    throw new RangeError('applyLora: layers narrow a list of names; with a regular expression, say it there');
  const patterns = layersPattern.length > 0 ? layersPattern : ['[^.]*'];
  const index = patterns.map((pattern) => new RegExp(`^.*?\\.${pattern}\\.(\\d+)\\.`).exec(path)?.[1]).find(Boolean);
  return index !== undefined && layers.includes(Number(index));
}

/** The value of the first pattern that matches the end of a path. */
function patternValue(pattern: Readonly<Record<string, number>>, path: string): number | undefined {
  return Object.entries(pattern).find(([key]) => fullMatch('rankPattern', `(.*\\.)?(${key})`)(path))?.[1];
}

function checkPatterns(option: string, pattern: Readonly<Record<string, number>>, paths: readonly string[]): void {
  const unused = Object.keys(pattern).filter((key) => !paths.some((path) => patternValue({ [key]: 1 }, path) === 1));
  if (unused.length > 0)
    throw new Error(`applyLora: ${option}: no adapted layer matches ${unused.map((key) => `"${key}"`).join(', ')}`);
}

function settingsOf(path: string, config: LoraConfig, { weight }: Linear): LoraSettings {
  const { useRslora, useDora: isDora, dropout, initLoraWeights } = config;
  const r = patternValue(config.rankPattern, path) ?? config.r;
  const alpha = patternValue(config.alphaPattern, path) ?? config.alpha;
  const drawn = { kind: 'uniform', bound: 1 / Math.sqrt(weight.fullShape[1]!) } as const;
  return {
    r,
    factor: useRslora ? alpha / Math.sqrt(r) : alpha / r,
    isDora,
    dropout,
    initA: initLoraWeights === 'gaussian' ? { kind: 'normal', std: 1 / r } : drawn,
    initB: initLoraWeights === false ? { kind: 'uniform', bound: 1 / Math.sqrt(r) } : { kind: 'constant', value: 0 },
  };
}
