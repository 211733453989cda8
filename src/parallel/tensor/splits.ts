// What a plan says of each module and parameter: pure, so that it can be asked without ranks.
import type { CausalLM } from '../../models/causal_lm.ts';
import type { ModelConfig } from '../../models/config.ts';
import { Embedding, Linear } from '../../nn/layers.ts';
import type { Parameter } from '../../nn/parameter.ts';
import { TensorSplit } from '../../nn/split.ts';
import type { TensorParallelPlan, TensorParallelStyle } from './plan.ts';

/** The style of every module of `model`, by path. Errors: a module with parameters of which the plan says nothing. */
export function stylesOf(model: CausalLM, plan: TensorParallelPlan): Map<string, TensorParallelStyle> {
  const rules = Object.entries(plan).map(([path, style]) => ({ parts: path.split('.'), style }));
  const styles = new Map<string, TensorParallelStyle>();
  for (const [path, module] of model.namedModules()) {
    const parts = path.split('.');
    const rule = rules.find(
      (candidate) =>
        candidate.parts.length === parts.length &&
        candidate.parts.every((part, i) => part === '*' || part === parts[i]),
    );
    if (rule) styles.set(path, rule.style);
    else if ([...module.ownParameters()].length > 0)
      throw new Error(`transform: the tensor-parallel plan of ${model.config.modelType} does not name ${path}`);
  }
  return styles;
}

/** How rank `rank` of `size` holds the parameter `name` (of a whole model) of a module of that style. */
export function splitOf(
  style: TensorParallelStyle,
  name: string,
  parameter: Parameter,
  config: ModelConfig,
  size: number,
  rank: number,
): TensorSplit {
  const divided = (dim: 0 | 1, parts = size): TensorSplit => new TensorSplit(parameter.shape, dim, size, rank, parts);
  switch (style) {
    case 'vocabulary':
    case 'column':
      return divided(0);
    case 'keyValue':
      return divided(0, Math.min(config.numKeyValueHeads, size));
    case 'row':
    case 'rowWeight':
      if (name === 'weight') return divided(1);
  }
  return new TensorSplit(parameter.shape, undefined, size, rank);
}

/** The split of every parameter of a whole model, by name. Errors as of checkDivides. */
export function splitsOf(
  model: CausalLM,
  plan: TensorParallelPlan,
  size: number,
  rank: number,
): Map<string, TensorSplit> {
  const styles = stylesOf(model, plan);
  checkDivides(model, styles, size);
  const splits = new Map<string, TensorSplit>();
  for (const [path, module] of model.namedModules()) {
    for (const [name, parameter] of module.ownParameters())
      splits.set(`${path}.${name}`, splitOf(styles.get(path)!, name, parameter, model.config, size, rank));
  }
  return splits;
}

/** Throws, with the numbers, when the model cannot be divided by `size`. */
export function checkDivides(model: CausalLM, styles: ReadonlyMap<string, TensorParallelStyle>, size: number): void {
  const { numAttentionHeads, numKeyValueHeads, modelType } = model.config;
  const what = `transform: ${modelType} with tensor-parallel degree ${size}`;
  if (numAttentionHeads % size !== 0)
    throw new RangeError(`${what}: the ${numAttentionHeads} attention heads do not divide by ${size}`);
  const fewer = numKeyValueHeads < size;
  if (fewer ? size % numKeyValueHeads !== 0 : numKeyValueHeads % size !== 0)
    throw new RangeError(
      `${what}: ${numKeyValueHeads} key/value heads neither divide by ${size} nor can be replicated over ${size} ranks`,
    );
  const modules = new Map(model.namedModules());
  for (const [path, style] of styles) {
    const module = modules.get(path)!;
    const wants = style === 'row' || style === 'rowWeight' ? 1 : style === 'column' ? 0 : undefined;
    if (wants !== undefined) {
      if (!(module instanceof Linear))
        throw new TypeError(`${what}: the plan calls ${path} ${style}, but it is no Linear`);
      const length = module.weight.size(wants);
      if (length % size !== 0)
        throw new RangeError(
          `${what}: the ${length} ${wants === 0 ? 'output' : 'input'} features of ${path} do not divide by ${size}`,
        );
    }
    if (style === 'vocabulary' && !(module instanceof Linear || module instanceof Embedding))
      throw new TypeError(`${what}: the plan calls ${path} vocabulary, but it is no embedding and no head`);
    if (style === 'attention' && !('heads' in module && 'kvHeads' in module))
      throw new TypeError(`${what}: the plan calls ${path} attention, but it has no heads and kvHeads`);
  }
}
