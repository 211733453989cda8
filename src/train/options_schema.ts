// The one description of every fine-tuning option: its check, its default, its flag and its help.
// Flags, config files and programs all end here, so a message about a key reads the same from each of them.
import { z } from 'zod';
import { nearest } from '../core/nearest.ts';
import { divisors, neighbours } from '../distributed/degrees.ts';
import { shardingStrategies } from '../parallel/fsdp/options.ts';
import { recomputations } from '../parallel/recomputation.ts';
import type { FinetuneOptions, OptimizerName } from './options.ts';
import { parseSteps } from './profile_steps.ts';

/** Wrong options. The message has one line for each. */
export class OptionsError extends Error {
  override name = 'OptionsError';
}

/** One option. The flag is the key in kebab-case unless `flag` says otherwise. */
export interface OptionField<T = unknown> {
  schema: z.ZodType<T>;
  help: string;
  /** Completes "got …, wanted …". */
  wanted: string;
  group: 'Main' | 'Batches' | 'Optimizer' | 'Adapter' | 'Parallelism' | 'Evaluation and checkpoints' | 'Reports';
  /** Placeholder of the flag's value; none for a boolean, `[dir]` for a value that may be left out. */
  value?: string;
  flag?: string;
  default?: T;
}

/** Accepts the flag's text as well as the number of a config file. */
const numeric = <T extends z.ZodType<number>>(schema: T): z.ZodType<number> =>
  z.preprocess((v) => (typeof v === 'string' && v.trim() !== '' ? Number(v) : v), schema);
const count = { schema: numeric(z.int().min(1)), wanted: 'a whole number of at least 1', value: '<n>' };
const countOrZero = { schema: numeric(z.int().min(0)), wanted: 'a whole number of at least 0', value: '<n>' };
const positive = { schema: numeric(z.number().positive()), wanted: 'a number above 0', value: '<x>' };
const notNegative = { schema: numeric(z.number().min(0)), wanted: 'a number of at least 0', value: '<x>' };
const fraction = { schema: numeric(z.number().min(0).max(1)), wanted: 'a number from 0 to 1', value: '<x>' };
const yesNo = { schema: z.boolean(), wanted: 'true or false' };
const text = { schema: z.string().min(1), wanted: 'text' };
const oneOf = <T extends string>(...values: T[]) => ({
  schema: z.enum(values) as unknown as z.ZodType<T>,
  wanted: `one of ${values.join(', ')}`,
  value: `<${values.length > 3 ? 'name' : values.join('|')}>`,
});
const optional = <T>(field: { schema: z.ZodType<T>; wanted: string; value?: string }) => ({
  ...field,
  schema: field.schema.optional() as z.ZodType<T | undefined>,
});
const beta = z.number().min(0).lt(1);
const betas: z.ZodType<[number, number]> = z.preprocess(
  (v) => (typeof v === 'string' ? v.split(',').map(Number) : v),
  z.tuple([beta, beta]),
);

/** A config file may have one step as a number. */
const stepRange: z.ZodType<string> = z.preprocess(
  (v) => (typeof v === 'number' ? String(v) : v),
  z.string().refine((v) => parseSteps(v) !== undefined),
);

const nameList: z.ZodType<readonly string[]> = z.preprocess(
  (v) => (typeof v === 'string' ? v.split(',').map((name) => name.trim()) : v),
  z.array(z.string().min(1)).min(1),
);
/** Names between commas become a list; what is no name is a regular expression. */
const layerNames: z.ZodType<string | readonly string[]> = z.preprocess(
  (v) => (typeof v === 'string' && v !== 'all-linear' && /^[\w.]+(\s*,\s*[\w.]+)*$/.test(v) ? v.split(/\s*,\s*/) : v),
  z.union([z.string().min(1), z.array(z.string().min(1)).min(1)]),
);

type Fields = { [K in keyof Required<FinetuneOptions>]: OptionField<FinetuneOptions[K]> };

/** Every option, in the order of the help. */
export const finetuneFields: Fields = {
  model: { ...text, value: '<dir>', group: 'Main', help: 'model folder, or a hub id in the local Hugging Face cache' },
  data: { ...text, value: '<file>', group: 'Main', help: 'JSONL to train on: text, prompt/completion or messages' },
  evalData: { ...optional(text), value: '<file>', group: 'Main', help: 'JSONL to evaluate on' },
  out: { ...text, value: '<dir>', group: 'Main', help: 'folder for the model, checkpoints, metrics and report' },
  nproc: {
    ...count,
    group: 'Main',
    default: 1,
    help: 'ranks on this host; the command takes gpu (one for each GPU) and auto (as gpu, or 1 without any) too',
  },
  device: {
    ...oneOf('auto', 'cpu', 'cuda'),
    group: 'Main',
    default: 'auto',
    help: 'compute on a GPU for each rank, or the CPU; auto: GPUs where they can be used',
  },

  epochs: { ...positive, group: 'Batches', default: 3, help: 'passes over the data' },
  maxSteps: { ...optional(count), group: 'Batches', help: 'stop after n steps; wins over --epochs' },
  batchSize: { ...count, group: 'Batches', default: 8, help: 'sequences of one forward pass on one rank' },
  gradAccum: { ...count, group: 'Batches', default: 1, help: 'forward passes of one step' },
  seqLength: {
    ...optional(count),
    group: 'Batches',
    help: 'longest sequence in tokens (default: the limit of the model, at most 1024)',
  },
  packing: { ...yesNo, group: 'Batches', default: false, help: 'fill sequences with several examples' },
  lossOn: { ...oneOf('completions', 'all'), group: 'Batches', default: 'completions', help: 'tokens the loss is over' },

  optimizer: {
    ...oneOf('adamw', 'adamw8bit', 'sgd', 'adafactor'),
    group: 'Optimizer',
    default: 'adamw',
    help: 'what updates the weights: adamw, adamw8bit (moments of 8 bits), sgd or adafactor',
  },
  lr: {
    ...notNegative,
    group: 'Optimizer',
    default: 2e-5,
    help: 'peak learning rate; for Adafactor relative to the size of the weights (1e-3 or more)',
  },
  schedule: {
    ...oneOf('cosine', 'linear', 'constant'),
    group: 'Optimizer',
    default: 'cosine',
    help: 'learning rate after warm-up',
  },
  warmupSteps: { ...optional(countOrZero), group: 'Optimizer', help: 'steps of warm-up; wins over --warmup-ratio' },
  warmupRatio: { ...fraction, group: 'Optimizer', default: 0, help: 'part of all steps that is warm-up' },
  weightDecay: { ...notNegative, group: 'Optimizer', default: 0, help: 'weight decay, not on 1-d parameters' },
  betas: {
    schema: betas,
    wanted: 'two numbers from 0 to below 1, such as 0.9,0.999',
    value: '<a,b>',
    group: 'Optimizer',
    default: [0.9, 0.999],
    help: 'AdamW decay rates of the moments',
  },
  eps: { ...positive, group: 'Optimizer', default: 1e-8, help: 'AdamW epsilon' },
  momentum: { ...optional(fraction), group: 'Optimizer', help: 'of SGD (default: 0.9)' },
  dampening: { ...optional(fraction), group: 'Optimizer', help: 'of SGD: what of a gradient its momentum leaves out' },
  nesterov: { ...optional(yesNo), group: 'Optimizer', help: "of SGD: Nesterov's momentum" },
  beta2Decay: {
    ...optional({ schema: numeric(z.number().max(0)), wanted: 'a number of at most 0', value: '<x>' }),
    group: 'Optimizer',
    help: 'of Adafactor: exponent of the step in the decay of second moments (default: -0.8)',
  },
  clipThreshold: {
    ...optional({ schema: numeric(z.number().min(1)), wanted: 'a number of at least 1', value: '<x>' }),
    group: 'Optimizer',
    help: 'of Adafactor: how large the elements of an update may be (default: 1)',
  },
  maxGradNorm: { ...notNegative, group: 'Optimizer', default: 1, help: 'clip the gradient norm; 0: do not' },

  loraR: {
    ...optional(count),
    group: 'Adapter',
    help: 'train a LoRA adapter of this rank, and save it alone; the model is frozen',
  },
  loraAlpha: { ...optional(positive), group: 'Adapter', help: 'scale the update by alpha / r (default: 8)' },
  loraTarget: {
    ...optional({ schema: layerNames, wanted: 'all-linear, names or a regular expression', value: '<names>' }),
    group: 'Adapter',
    help: 'layers to adapt: names between commas, a regular expression, or all-linear (default)',
  },
  loraDropout: {
    ...optional({ schema: numeric(z.number().min(0).lt(1)), wanted: 'a number from 0 to below 1', value: '<x>' }),
    group: 'Adapter',
    help: 'part of the inputs of the update to drop in training (default: 0)',
  },
  loraRslora: { ...optional(yesNo), group: 'Adapter', help: 'scale by alpha / √r' },
  loraDora: { ...optional(yesNo), group: 'Adapter', help: "train the lengths of the weights' rows too (DoRA)" },
  loraModulesToSave: {
    ...optional({ schema: nameList, wanted: 'names of modules', value: '<names>' }),
    group: 'Adapter',
    help: 'modules to train whole and save with the adapter, such as lm_head',
  },
  loraBias: {
    ...optional(oneOf('none', 'all', 'lora_only')),
    group: 'Adapter',
    help: 'biases to train too (default: none)',
  },
  quantize: {
    ...optional(oneOf('nf4', 'int8')),
    group: 'Adapter',
    help: 'store the frozen weights of linear layers in 4 bits (QLoRA) or 8, while they are loaded',
  },
  adapter: {
    ...optional(text),
    value: '<dir>',
    group: 'Adapter',
    help: "adapter in PEFT's format to train on, instead of a fresh one",
  },

  precision: {
    ...oneOf('float32', 'bfloat16'),
    group: 'Parallelism',
    default: 'float32',
    help: 'dtype of forward and backward; masters stay float32',
  },
  strategy: {
    ...oneOf(...shardingStrategies),
    group: 'Parallelism',
    default: 'FULL_SHARD',
    help: shardingStrategies.join(', '),
  },
  hybridShardDegree: {
    ...optional(count),
    group: 'Parallelism',
    help: 'ranks of one shard group, for hybrid strategies (default: those of one host)',
  },
  tp: {
    ...count,
    group: 'Parallelism',
    default: 1,
    help: 'ranks that share each layer (tensor parallelism)',
  },
  sequenceParallel: {
    ...yesNo,
    group: 'Parallelism',
    default: false,
    help: 'with --tp, share the rows between layers too',
  },
  activationCheckpointing: {
    ...yesNo,
    group: 'Parallelism',
    default: false,
    help: 'recompute decoder layers in backward to save memory',
  },
  recompute: {
    ...oneOf(...recomputations),
    group: 'Parallelism',
    default: 'all',
    help: 'with --activation-checkpointing: selective keeps the results of attention too',
  },
  reducePrecision: {
    ...oneOf('float32', 'bfloat16'),
    group: 'Parallelism',
    default: 'float32',
    help: 'of gradients while they are reduced, with --precision bfloat16',
  },

  evalSteps: {
    ...optional(count),
    group: 'Evaluation and checkpoints',
    help: 'evaluate every n steps (default: after each epoch)',
  },
  evalAtStart: { ...yesNo, group: 'Evaluation and checkpoints', default: true, help: 'evaluate before the first step' },
  saveSteps: { ...optional(count), group: 'Evaluation and checkpoints', help: 'save a checkpoint every n steps' },
  saveTotalLimit: { ...count, group: 'Evaluation and checkpoints', default: 2, help: 'keep the newest n checkpoints' },
  resume: {
    schema: z.preprocess((v) => (v === true ? 'auto' : v === false ? undefined : v), text.schema.optional()),
    wanted: 'a folder or auto',
    value: '[dir]',
    group: 'Evaluation and checkpoints',
    help: 'go on from a checkpoint; without a folder or with auto: from the newest in --out',
  },
  seed: {
    ...optional(countOrZero),
    group: 'Evaluation and checkpoints',
    help: "seed of data order and initialisation (default: the checkpoint's, else randomSeed of init, else 42)",
  },
  samplePrompts: {
    schema: z.array(z.string().min(1)),
    wanted: 'a list of texts',
    value: '<text>',
    flag: 'sample-prompt',
    group: 'Evaluation and checkpoints',
    default: [],
    help: 'answer this prompt before and after; repeatable',
  },

  logSteps: { ...count, group: 'Reports', default: 1, help: 'report every n steps' },
  tensorboard: { ...yesNo, group: 'Reports', default: true, help: 'write TensorBoard event files' },
  report: { ...yesNo, group: 'Reports', default: true, help: 'write report.html at the end' },
  profile: {
    ...optional(text),
    value: '<dir>',
    group: 'Reports',
    help: 'write a trace and a table of some steps there',
  },
  profileSteps: {
    ...optional({ schema: stepRange, wanted: 'a step such as 7, or steps such as 7-9', value: '<a-b>' }),
    group: 'Reports',
    help: 'the steps to profile (default: three, after two of warm-up)',
  },
};

/** `maxGradNorm` → `max-grad-norm`, or the field's own flag. */
export function flagOf(key: string): string {
  const field = finetuneFields[key as keyof FinetuneOptions] as OptionField | undefined;
  return field?.flag ?? key.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`);
}

/** Keys in camelCase or kebab-case → the keys of FinetuneOptions. Unknown keys are returned beside. */
function normaliseKeys(input: Record<string, unknown>, where: (key: string) => string) {
  const byName = new Map<string, string>();
  for (const key of Object.keys(finetuneFields)) {
    byName.set(key, key).set(flagOf(key), key);
    byName.set(
      flagOf(key).replace(/-(\w)/g, (_, letter: string) => letter.toUpperCase()),
      key,
    );
  }
  const values: Record<string, unknown> = {};
  const problems: string[] = [];
  for (const [name, value] of Object.entries(input)) {
    const key = byName.get(name);
    if (key === undefined) {
      const near = nearest(name, [...byName.keys()]);
      problems.push(`${where(name)}: no such option${near ? `; did you mean ${near}?` : ''}`);
    } else if (value !== undefined && value !== null) {
      values[key] = value;
    }
  }
  return { values, problems };
}

const show = (value: unknown): string => (value === undefined ? 'nothing' : JSON.stringify(value));

/** Which optimizers have a setting that not all have. */
const settingsOf: Partial<Record<keyof FinetuneOptions, readonly OptimizerName[]>> = {
  betas: ['adamw', 'adamw8bit'],
  eps: ['adamw', 'adamw8bit'],
  momentum: ['sgd'],
  dampening: ['sgd'],
  nesterov: ['sgd'],
  beta2Decay: ['adafactor'],
  clipThreshold: ['adafactor'],
};

function optimizerProblems(o: FinetuneOptions): string[] {
  const problems: string[] = [];
  for (const [key, optimizers] of Object.entries(settingsOf) as [keyof FinetuneOptions, readonly OptimizerName[]][]) {
    const isGiven = o[key] !== undefined && show(o[key]) !== show(finetuneFields[key].default);
    if (isGiven && !optimizers.includes(o.optimizer))
      problems.push(`${key}: is a setting of ${optimizers.join(' and ')}, got optimizer ${o.optimizer}`);
  }
  const { momentum = 0.9, dampening = 0 } = o;
  if (o.nesterov && (momentum === 0 || dampening !== 0))
    problems.push(`nesterov: wants a momentum and no dampening, got ${momentum} and ${dampening}`);
  return problems;
}

/** What contradicts between options that are right by themselves. */
function contradictions(o: FinetuneOptions): string[] {
  const problems: string[] = [];
  const near = (n: number, wanted: number): string => `the nearest are ${neighbours(divisors(n), wanted)}`;
  const hybrid = o.strategy.includes('HYBRID');
  if (o.hybridShardDegree !== undefined && !hybrid) {
    problems.push(`hybridShardDegree: wants strategy HYBRID_SHARD or _HYBRID_SHARD_ZERO2, got ${o.strategy}`);
  }
  if (o.nproc % o.tp !== 0) {
    problems.push(`tp: got ${o.tp}, wanted a divisor of the ${o.nproc} ranks (nproc): ${near(o.nproc, o.tp)}`);
  } else if (o.hybridShardDegree !== undefined && hybrid && (o.nproc / o.tp) % o.hybridShardDegree !== 0) {
    const ranks = o.tp === 1 ? `${o.nproc} ranks (nproc)` : `${o.nproc / o.tp} data-parallel ranks (nproc / tp)`;
    const nearby = near(o.nproc / o.tp, o.hybridShardDegree);
    problems.push(`hybridShardDegree: got ${o.hybridShardDegree}, wanted a divisor of the ${ranks}: ${nearby}`);
  }
  if (o.sequenceParallel && o.tp === 1) problems.push('sequenceParallel: wants tp, the ranks that share each layer');
  problems.push(...optimizerProblems(o));
  if (o.evalSteps !== undefined && o.evalData === undefined) {
    problems.push('evalSteps: wants evalData, the file to evaluate on');
  }
  if (o.adapter !== undefined && o.loraR !== undefined) {
    problems.push('adapter: an adapter that exists has a rank of its own; leave out loraR');
  }
  for (const key of [
    'loraAlpha',
    'loraTarget',
    'loraDropout',
    'loraRslora',
    'loraDora',
    'loraModulesToSave',
    'loraBias',
  ] as const) {
    if (o[key] !== undefined && o.loraR === undefined)
      problems.push(`${key}: wants loraR, the rank of a fresh adapter`);
  }
  if (o.quantize && o.loraDora) problems.push('loraDora: not on weights that are quantised');
  if (o.loraDora && o.loraDropout) problems.push('loraDropout: not together with loraDora');
  if (o.profileSteps !== undefined && o.profile === undefined) {
    problems.push('profileSteps: wants profile, the folder to write to');
  }
  return problems;
}

/**
 * Checks `input` (keys in camelCase or kebab-case) and fills in defaults.
 *
 * @param where names a key as the user wrote it, such as `--batch-size` or `train.yaml: batchSize`.
 */
export function parseFinetuneOptions(
  input: Record<string, unknown>,
  where: (key: string) => string = (key) => key,
): FinetuneOptions {
  const { values, problems } = normaliseKeys(input, where);
  const parsed: Record<string, unknown> = {};
  for (const [key, field] of Object.entries(finetuneFields) as [string, OptionField][]) {
    const value = key in values ? values[key] : field.default;
    const result = field.schema.safeParse(value);
    if (result.success) {
      if (result.data !== undefined) parsed[key] = result.data;
    } else if (value === undefined) {
      problems.push(`${where(key)} is missing: ${field.help}`);
    } else {
      problems.push(`${where(key)}: got ${show(value)}, wanted ${field.wanted}`);
    }
  }
  if (problems.length === 0) problems.push(...contradictions(parsed as unknown as FinetuneOptions));
  if (problems.length > 0) throw new OptionsError(problems.join('\n'));
  return parsed as unknown as FinetuneOptions;
}
