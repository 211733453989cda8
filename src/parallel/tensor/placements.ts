// What a plan says of each module and parameter of a model: pure, so that it can be asked without ranks.
import type { CausalLM } from '../../models/causal_lm.ts';
import type { ModelConfig } from '../../models/config.ts';
import { Linear } from '../../nn/layers.ts';
import type { Module } from '../../nn/module.ts';
import { type AxisPosition, Placement } from '../../nn/placement.ts';
import { type ModulePlan, type ParallelPlan, type PlannedPlacement, placementFor } from '../../nn/plan.ts';

/** The rule of every module of `model`, by path. Errors: a module with parameters of which the plan says nothing. */
export function rulesOf(model: CausalLM, plan: ParallelPlan): Map<string, ModulePlan> {
  const rules = Object.entries(plan).map(([path, rule]) => ({ components: path.split('.'), rule }));
  const found = new Map<string, ModulePlan>();
  for (const [path, module] of model.namedModules()) {
    const components = path.split('.');
    const match = rules.find(
      (candidate) =>
        candidate.components.length === components.length &&
        candidate.components.every((component, i) => component === '*' || component === components[i]),
    );
    if (match) found.set(path, match.rule);
    else if ([...module.ownParameters()].length > 0)
      throw new Error(`transform: the parallel plan of ${model.config.modelType} does not name ${path}`);
  }
  return found;
}

/** What a rule says of a parameter. */
export function plannedFor(rule: ModulePlan, name: string): PlannedPlacement {
  return rule.parameters?.[name] ?? { kind: 'replicate' };
}

/** The placement of every parameter of a whole model, by name, at `position`. Errors as of checkDivides. */
export function placementsOf(model: CausalLM, plan: ParallelPlan, position: AxisPosition): Map<string, Placement> {
  const rules = rulesOf(model, plan);
  checkDivides(model, rules, position.size);
  const placements = new Map<string, Placement>();
  for (const [path, module] of model.namedModules()) {
    for (const [name, parameter] of module.ownParameters()) {
      const held = placementFor(plannedFor(rules.get(path)!, name), model.config, position.size);
      placements.set(`${path}.${name}`, new Placement(parameter.shape, held, position));
    }
  }
  return placements;
}

/** Throws, with the numbers, when the model cannot be divided by `size`. */
export function checkDivides(model: CausalLM, rules: ReadonlyMap<string, ModulePlan>, size: number): void {
  const what = `transform: ${model.config.modelType} with tensor-parallel degree ${size}`;
  checkHeads(model.config, size, what);
  const modules = new Map(model.namedModules());
  for (const [path, rule] of rules) {
    const module = modules.get(path)!;
    for (const property of Object.keys(rule.counts ?? {})) {
      if (!(property in module)) throw new TypeError(`${what}: the plan counts ${property} of ${path}, which has none`);
    }
    for (const [name, parameter] of module.ownParameters()) {
      const planned = plannedFor(rule, name);
      if (planned.kind === 'shard') checkShard(module, `${path}.${name}`, parameter.shape, planned, size, what);
    }
  }
}

function checkHeads({ numAttentionHeads, numKeyValueHeads }: ModelConfig, size: number, what: string): void {
  if (numAttentionHeads % size !== 0)
    throw new RangeError(`${what}: the ${numAttentionHeads} attention heads do not divide by ${size}`);
  const fewer = numKeyValueHeads < size;
  if (fewer ? size % numKeyValueHeads !== 0 : numKeyValueHeads % size !== 0)
    throw new RangeError(
      `${what}: ${numKeyValueHeads} key/value heads neither divide by ${size} nor can be replicated over ${size} ranks`,
    );
}

function checkShard(
  module: Module,
  name: string,
  shape: readonly number[],
  { dim, units, padded }: Extract<PlannedPlacement, { kind: 'shard' }>,
  size: number,
  what: string,
): void {
  if (units !== undefined || padded) return;
  const length = shape[dim];
  if (length === undefined)
    throw new TypeError(`${what}: the plan divides dimension ${dim} of ${name}, which is [${shape}]`);
  if (length % size === 0) return;
  const features = dim === 0 ? 'output features' : 'input features';
  const of =
    module instanceof Linear
      ? `${features} of ${name.replace(/\.\w+$/, '')}`
      : `indices of dimension ${dim} of ${name}`;
  throw new RangeError(`${what}: the ${length} ${of} do not divide by ${size}`);
}
