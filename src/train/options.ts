// The options of a fine-tuning run, as `rankzero finetune`, its config file and programs give them.
// Types only, so that `import 'rankzero'` does not pay for zod; the schema behind them is options_schema.ts.
import type { QuantizationScheme } from '../adapt/quantize.ts';
import type { DeviceChoice } from '../distributed/compute_device.ts';
import type { ShardingStrategy } from '../parallel/fsdp/options.ts';
import type { Recomputation } from '../parallel/recomputation.ts';

/** How parameters, gradients and optimizer state are sharded; the names are PyTorch's. */
export type StrategyName = ShardingStrategy;

/** AdamW, AdamW with moments of 8 bits, SGD with momentum, or Adafactor. */
export type OptimizerName = 'adamw' | 'adamw8bit' | 'sgd' | 'adafactor';

/** Options of a fine-tuning run with every default filled in. */
export interface FinetuneOptions {
  /** Folder with the model, or a hub id found in the local Hugging Face cache. */
  model: string;
  /** JSONL file with `text`, `prompt`/`completion` or `messages` on each line. */
  data: string;
  /** JSONL file to evaluate on. */
  evalData?: string | undefined;
  /** Folder for the model, checkpoints, metrics and report. */
  out: string;
  /** Ranks: of this host where the command is given it, of all hosts in a run. */
  nproc: number;
  /** What to compute on: `cuda` gives each rank a GPU; `auto` is `cuda` where that can be, else `cpu`. */
  device: DeviceChoice;

  /** Passes over the data. May be fractional. */
  epochs: number;
  /** Stops after so many optimizer steps; wins over `epochs`. */
  maxSteps?: number | undefined;
  /** Sequences of one forward pass on one rank. */
  batchSize: number;
  /** Forward passes of one optimizer step. */
  gradAccum: number;
  /** Longest sequence in tokens; longer ones are cut. Default: the model's limit, at most 1024. */
  seqLength?: number | undefined;
  /** Fills sequences of `seqLength` with several examples, which do not see each other. */
  packing: boolean;
  /** Tokens that the loss is over. */
  lossOn: 'completions' | 'all';

  /** What updates the weights. */
  optimizer: OptimizerName;
  /** Peak learning rate. */
  lr: number;
  /** Shape of the learning rate after warm-up. */
  schedule: 'cosine' | 'linear' | 'constant';
  /** Steps of linear warm-up; wins over `warmupRatio`. */
  warmupSteps?: number | undefined;
  /** Part of all steps that is warm-up. */
  warmupRatio: number;
  /** Decoupled weight decay, but SGD's joins the gradient. One-dimensional parameters are not decayed. */
  weightDecay: number;
  /** AdamW's decay rates of the two moments. */
  betas: [number, number];
  /** AdamW's epsilon. */
  eps: number;
  /** Of SGD. Default 0.9. */
  momentum?: number | undefined;
  /** Of SGD: the part of a gradient that does not enter the momentum buffer. Default 0. */
  dampening?: number | undefined;
  /** Of SGD: Nesterov's momentum. Default false. */
  nesterov?: boolean | undefined;
  /** Of Adafactor: second moments of step t keep 1 − t^beta2Decay of themselves. Default −0.8. */
  beta2Decay?: number | undefined;
  /** Of Adafactor: how large the elements of an update may be. Default 1. */
  clipThreshold?: number | undefined;
  /** Clips the global gradient norm; 0 turns it off. */
  maxGradNorm: number;

  /** Trains a LoRA adapter of this rank on the frozen model, and saves it alone. Default: all parameters are trained. */
  loraR?: number | undefined;
  /** The adapter's update is scaled by alpha / r. Default 8, as in PEFT. */
  loraAlpha?: number | undefined;
  /** Layers to adapt: `all-linear` (all but the head, the default), names, or a regular expression that matches whole paths. */
  loraTarget?: string | readonly string[] | undefined;
  /** Part of the inputs of the update that training drops. */
  loraDropout?: number | undefined;
  /** Scales by alpha / √r instead. */
  loraRslora?: boolean | undefined;
  /** DoRA: trains the lengths of the adapted weights' rows too. */
  loraDora?: boolean | undefined;
  /** Modules that are trained whole and saved with the adapter: `lm_head`, say. */
  loraModulesToSave?: readonly string[] | undefined;
  /** Biases that are trained too. */
  loraBias?: 'none' | 'all' | 'lora_only' | undefined;
  /** Folder of an adapter (PEFT's format) to train on, instead of a fresh one. */
  adapter?: string | undefined;

  /** dtype of parameters and activations in forward and backward; masters stay float32. */
  precision: 'float32' | 'bfloat16';
  strategy: StrategyName;
  /** Ranks of one shard group, for the hybrid strategies. Default: the ranks of one host. */
  hybridShardDegree?: number | undefined;
  /** Ranks over which each layer is divided (tensor parallelism); they get the same batches. */
  tp: number;
  /** With `tp`: the rows between the layers are divided too, for less activation memory. */
  sequenceParallel: boolean;
  /** Recomputes each decoder layer in backward instead of keeping its activations. */
  activationCheckpointing: boolean;
  /** What it recomputes: `all`, or `selective`, which keeps the results of attention too. Default `all`. */
  recompute: Recomputation;
  /** Stores the weights of linear layers in 4 (`nf4`) or 8 bits (`int8`), frozen. Default: not. */
  quantize?: QuantizationScheme | undefined;
  /** Of gradients while they are reduced, with `precision` bfloat16. Default float32. */
  reducePrecision: 'float32' | 'bfloat16';

  /** Evaluates every so many steps. Default: after each epoch. */
  evalSteps?: number | undefined;
  /** Evaluates, and answers the sample prompts, before the first step. */
  evalAtStart: boolean;
  /** Saves a checkpoint every so many steps. Default: none before the end. */
  saveSteps?: number | undefined;
  /** Keeps so many checkpoints, the newest. */
  saveTotalLimit: number;
  /** Checkpoint to go on from; `auto` is the newest in `out`, if there is one. */
  resume?: string | undefined;
  /** Seed of data order and initialisation. Default: that of the checkpoint to go on from, else `randomSeed` of init, else 42. */
  seed?: number | undefined;
  /** Prompts that the model answers before and after. */
  samplePrompts: string[];

  /** Reports every so many steps. */
  logSteps: number;
  /** Writes TensorBoard event files to `out/tensorboard`. */
  tensorboard: boolean;
  /** Writes `out/report.html` at the end. */
  report: boolean;
  /** Folder for a profile of some steps: a trace, and a table of where the time went. */
  profile?: string | undefined;
  /** Steps to profile, as the log counts them: `7`, or `7-9`. Default: three, after two of warm-up. */
  profileSteps?: string | undefined;
}

/** Options of a run that has begun: its seed is known. */
export type RunOptions = FinetuneOptions & { seed: number };

/** What a user must say: model, data and output folder. Everything else has a default. */
export type FinetuneInput = Pick<FinetuneOptions, 'model' | 'data' | 'out'> & Partial<FinetuneOptions>;

/**
 * Fills in defaults and checks every option.
 *
 * @throws OptionsError naming each key that is wrong, what was got and what is wanted.
 */
export async function resolveFinetuneOptions(input: FinetuneInput): Promise<FinetuneOptions> {
  const { parseFinetuneOptions } = await import('./options_schema.ts');
  return parseFinetuneOptions(input as unknown as Record<string, unknown>);
}
