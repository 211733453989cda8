// What a LoRA adapter is: the options of a program, and adapter_config.json as PEFT writes it.
import { describe, FileFormatError, isObject, type JsonObject } from '../core/json.ts';

/** Options of applyLora; names and defaults are those of PEFT's LoraConfig. */
export interface LoraOptions {
  /** Rank of the update. Default 8. */
  r?: number | undefined;
  /** The update is scaled by alpha / r. Default 8. */
  alpha?: number | undefined;
  /**
   * The linear layers to adapt: names, each the whole path of a layer or its end behind a dot; a regular expression that matches
   * whole paths; or `all-linear`: all but the output head. Default: what PEFT has for the family (`q_proj` and `v_proj`, mostly).
   */
  targetModules?: readonly string[] | string | undefined;
  /** Layers to leave out, by names or a regular expression. */
  excludeModules?: readonly string[] | string | undefined;
  /** Other ranks, by regular expressions that match the end of a path behind a dot; the first that matches. */
  rankPattern?: Readonly<Record<string, number>> | undefined;
  /** Other alphas, in the same way. */
  alphaPattern?: Readonly<Record<string, number>> | undefined;
  /** Scales by alpha / √r. Default false. */
  useRslora?: boolean | undefined;
  /** Trains the lengths of the rows of the adapted weight too. Default false. */
  useDora?: boolean | undefined;
  /** Part of the inputs of the update that training drops, in [0, 1). Default 0. */
  dropout?: number | undefined;
  /** Modules that are trained whole and saved with the adapter: `lm_head`, say. A tied head is untied. */
  modulesToSave?: readonly string[] | undefined;
  /** Biases that are trained too: `none` (default), `all`, or those of adapted layers (`lora_only`). */
  bias?: 'none' | 'all' | 'lora_only' | undefined;
  /** Indices of the layers to adapt. Default: all. */
  layers?: readonly number[] | number | undefined;
  /** Name of the list that `layers` counts in, where a path has several numbers. */
  layersPattern?: readonly string[] | string | undefined;
  /** Default true: A is drawn as torch.nn.Linear's weight, B is zero. `gaussian`: A from N(0, 1/r). False: B is drawn too. */
  initLoraWeights?: boolean | 'gaussian' | undefined;
}

/** The same with every default filled in. */
export interface LoraConfig {
  readonly r: number;
  readonly alpha: number;
  readonly targetModules: readonly string[] | string | undefined;
  readonly excludeModules: readonly string[] | string | undefined;
  readonly rankPattern: Readonly<Record<string, number>>;
  readonly alphaPattern: Readonly<Record<string, number>>;
  readonly useRslora: boolean;
  readonly useDora: boolean;
  readonly dropout: number;
  readonly modulesToSave: readonly string[];
  readonly bias: 'none' | 'all' | 'lora_only';
  readonly layers: readonly number[] | undefined;
  readonly layersPattern: readonly string[];
  readonly initLoraWeights: boolean | 'gaussian';
}

type Check = readonly [wanted: string, isRight: (value: unknown) => boolean];

const isCount = (value: unknown): boolean => Number.isSafeInteger(value) && (value as number) >= 1;
const isIndex = (value: unknown): boolean => Number.isSafeInteger(value) && (value as number) >= 0;
const isNumber = (value: unknown): boolean => typeof value === 'number' && Number.isFinite(value);
const isListOf = (value: unknown, isRight: (item: unknown) => boolean): boolean =>
  Array.isArray(value) && value.every(isRight);
const isText = (value: unknown): boolean => typeof value === 'string' && value !== '';
const isMapOf = (value: unknown, isRight: (item: unknown) => boolean): boolean =>
  isObject(value) && Object.values(value).every(isRight);

const yesNo: Check = ['true or false', (value) => typeof value === 'boolean'];
const namesOrPattern: Check = [
  'a list of names, or a regular expression',
  (value) => isText(value) || (isListOf(value, isText) && (value as []).length > 0),
];
const names: Check = ['a list of names', (value) => isListOf(value, isText)];

/** By option: its key in adapter_config.json, and what its values must be. */
const checks: Readonly<Record<keyof LoraConfig, readonly [key: string, ...check: Check]>> = {
  r: ['r', 'a whole number of at least 1', isCount],
  alpha: ['lora_alpha', 'a number', isNumber],
  targetModules: ['target_modules', ...namesOrPattern],
  excludeModules: ['exclude_modules', ...namesOrPattern],
  rankPattern: ['rank_pattern', 'a rank of at least 1 for each pattern', (value) => isMapOf(value, isCount)],
  alphaPattern: ['alpha_pattern', 'a number for each pattern', (value) => isMapOf(value, isNumber)],
  useRslora: ['use_rslora', ...yesNo],
  useDora: ['use_dora', ...yesNo],
  dropout: [
    'lora_dropout',
    'a number from 0 to below 1',
    (v) => isNumber(v) && (v as number) >= 0 && (v as number) < 1,
  ],
  modulesToSave: ['modules_to_save', ...names],
  bias: ['bias', 'none, all or lora_only', (value) => ['none', 'all', 'lora_only'].includes(value as string)],
  layers: ['layers_to_transform', 'an index, or a list of them', (value) => isIndex(value) || isListOf(value, isIndex)],
  layersPattern: ['layers_pattern', 'a name, or a list of them', (value) => isText(value) || isListOf(value, isText)],
  initLoraWeights: [
    'init_lora_weights',
    'true, false or "gaussian"',
    (value) => typeof value === 'boolean' || value === 'gaussian',
  ],
};

const options = Object.keys(checks) as (keyof LoraConfig)[];

/** Fills in defaults. Errors name each option that is wrong, what was got and what is wanted. */
export function resolveLoraOptions(given: LoraOptions): LoraConfig {
  const problems = Object.entries(given).flatMap(([option, value]) => {
    if (value === undefined) return [];
    const check = Object.hasOwn(checks, option) ? checks[option as keyof LoraConfig] : undefined;
    if (!check) return [`there is no option ${option}; there are ${options.join(', ')}`];
    return check[2](value) ? [] : [`${option}: got ${describe(value)}, wanted ${check[1]}`];
  });
  if (given.useDora && given.initLoraWeights === false)
    problems.push('useDora measures the weight while B is zero; leave initLoraWeights true or "gaussian"');
  if (given.useDora && (given.dropout ?? 0) > 0) problems.push('useDora together with dropout is not supported');
  if (problems.length > 0) throw new RangeError(`applyLora: ${problems.join('; ')}`);
  return filledIn(given);
}

function filledIn(given: LoraOptions): LoraConfig {
  const { layers, layersPattern } = given;
  return {
    r: given.r ?? 8,
    alpha: given.alpha ?? 8,
    targetModules: given.targetModules,
    excludeModules: given.excludeModules,
    rankPattern: given.rankPattern ?? {},
    alphaPattern: given.alphaPattern ?? {},
    useRslora: given.useRslora ?? false,
    useDora: given.useDora ?? false,
    dropout: given.dropout ?? 0,
    modulesToSave: given.modulesToSave ?? [],
    bias: given.bias ?? 'none',
    layers: typeof layers === 'number' ? [layers] : layers?.length ? layers : undefined,
    layersPattern: typeof layersPattern === 'string' ? [layersPattern] : (layersPattern ?? []),
    initLoraWeights: given.initLoraWeights ?? true,
  };
}

// Keys that say where an adapter is from, or how it was drawn: they change nothing about what it computes.
const about = [
  'auto_mapping',
  'base_model_name_or_path',
  'fan_in_fan_out', // of layers that store their weight transposed; ours do not, and PEFT ignores it there
  'inference_mode',
  'loftq_config',
  'megatron_core',
  'peft_version',
  'qalora_group_size',
  'revision',
  'runtime_config',
  'task_type',
];
// Ways to draw the first values; the file has those of the end.
const drawn = ['pissa', 'olora', 'loftq', 'eva', 'corda', 'orthogonal', 'lora_ga'];

/** From adapter_config.json. Errors name the file, the key and what is wrong; keys that are not known and say something are refused. */
export function parsePeftConfig(json: JsonObject, file: string): LoraConfig {
  if (json.peft_type !== 'LORA')
    throw new FileFormatError(file, `peft_type is ${describe(json.peft_type)}; only "LORA" is supported`);
  const given: Record<string, unknown> = {};
  const problems: string[] = [];
  const known = new Set([...about, 'peft_type']);
  for (const option of options) {
    const [key, wanted, isRight] = checks[option];
    known.add(key);
    let value = json[key];
    if (value === undefined || value === null) continue;
    if (
      option === 'initLoraWeights' &&
      typeof value === 'string' &&
      drawn.some((name) => String(value).startsWith(name))
    )
      value = true;
    if (isEmpty(value) && (option === 'excludeModules' || option === 'layers')) continue;
    if (isRight(value)) given[option] = value;
    else problems.push(`${key} is ${describe(value)}, wanted ${wanted}`);
  }
  for (const [key, value] of Object.entries(json)) {
    if (!known.has(key) && !isEmpty(value))
      problems.push(`${key} is ${describe(value)}, which is not supported and would change what the adapter computes`);
  }
  if (problems.length > 0) throw new FileFormatError(file, problems.join('; '));
  return filledIn(given as LoraOptions);
}

function isEmpty(value: unknown): boolean {
  if (value === null || value === undefined || value === false || value === '') return true;
  return Array.isArray(value) ? value.length === 0 : isObject(value) && Object.keys(value).length === 0;
}

/** adapter_config.json, with the keys that PEFT 0.21 writes. `targets`: the names of all adapted layers, for `all-linear`. */
export function peftConfig(config: LoraConfig, base: string | undefined, targets: readonly string[]): JsonObject {
  const { targetModules, layers, layersPattern } = config;
  const orNull = <T>(list: readonly T[] | undefined): readonly T[] | null => (list?.length ? list : null);
  return {
    alora_invocation_tokens: null,
    alpha_pattern: config.alphaPattern,
    arrow_config: null,
    auto_mapping: null,
    base_model_name_or_path: base ?? null,
    bias: config.bias,
    corda_config: null,
    ensure_weight_tying: false,
    eva_config: null,
    exclude_modules: config.excludeModules ?? null,
    fan_in_fan_out: false,
    inference_mode: true,
    init_lora_weights: config.initLoraWeights,
    kasa_config: null,
    layer_replication: null,
    layers_pattern: orNull(layersPattern),
    layers_to_transform: orNull(layers),
    loftq_config: {},
    lora_alpha: config.alpha,
    lora_bias: false,
    lora_dropout: config.dropout,
    lora_ga_config: null,
    megatron_config: null,
    megatron_core: 'megatron.core',
    modules_to_save: orNull(config.modulesToSave),
    monteclora_config: null,
    peft_type: 'LORA',
    peft_version: '0.21.0',
    qalora_group_size: 16,
    r: config.r,
    rank_pattern: config.rankPattern,
    revision: null,
    target_modules: targetModules === undefined || targetModules === 'all-linear' ? targets : targetModules,
    target_parameters: null,
    task_type: 'CAUSAL_LM',
    trainable_token_indices: null,
    use_bdlora: null,
    use_dora: config.useDora,
    use_qalora: false,
    use_rslora: config.useRslora,
    velora_config: null,
  };
}
