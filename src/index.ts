// Everything a program imports. Exports only, in sections: the empty line below a title keeps it where it is when Biome sorts.

// Tensors and autograd

export { defineOp, type OpContext, type OpDefinition } from './autograd/define_op.ts';
export { gelu, swiglu } from './autograd/functions/activation.ts';
export { add, scale } from './autograd/functions/arithmetic.ts';
export { type AttentionShape, attention, type ExtendCache, qkvAttention } from './autograd/functions/attention.ts';
export { crossEntropy, linearCrossEntropy } from './autograd/functions/cross_entropy.ts';
export { type DropoutPlace, dropout } from './autograd/functions/dropout.ts';
export { embedding } from './autograd/functions/embedding.ts';
export { layerNorm } from './autograd/functions/layer_norm.ts';
export { linear } from './autograd/functions/linear.ts';
export { rmsNorm } from './autograd/functions/rms_norm.ts';
export { type RopeTable, rope, ropeTable } from './autograd/functions/rope.ts';
export { type GradCheckOptions, gradCheck } from './autograd/grad_check.ts';
export type { HostArguments, HostBackward, HostForward, HostOpDefinition } from './autograd/host_op.ts';
export { type RandomnessOptions, withRandomness } from './autograd/randomness.ts';
export type { DType, FloatDType } from './tensor/dtype.ts';
export { noGrad } from './tensor/grad_mode.ts';
export { emptyCache, type MemoryStats, memoryStats, resetPeakMemoryStats } from './tensor/memory.ts';
export { manualSeed } from './tensor/random.ts';
export { scope } from './tensor/scope.ts';
export { type Device, type Shape, Tensor, type TensorData, type TensorOptions } from './tensor/tensor.ts';

// Modules

export { Dropout, type DropoutOptions } from './nn/dropout.ts';
export { initEmptyWeights } from './nn/init_empty_weights.ts';
export { Embedding, LayerNorm, type LayerOptions, Linear, RMSNorm } from './nn/layers.ts';
export { Module, ModuleList, moveBuffersToDevice } from './nn/module.ts';
export { type Init, Parameter } from './nn/parameter.ts';
export type { AxisPlacement, Block, Placement } from './nn/placement.ts';
export {
  columnParallel,
  columnParallelBy,
  gathersInput,
  gathersOutput,
  headParallel,
  type ModulePlan,
  type ParallelPlan,
  type PlannedPlacement,
  partialGradient,
  replicated,
  rowParallel,
  shardRows,
  sumsOutput,
  vocabParallel,
} from './nn/plan.ts';
export type { SliceRange, TrainableSlice } from './nn/trainable_slice.ts';

// Models

export {
  AutoModelForCausalLM,
  type FromConfigOptions,
  type FromPretrainedOptions,
  type ModelFamily,
  registerModel,
} from './models/auto.ts';
export type { ForwardInput, TokenInput } from './models/batch.ts';
export type { LayerCache } from './models/cache.ts';
export {
  CausalLM,
  CausalLMHead,
  type ForwardContext,
  type LogitsOutput,
  type LossOutput,
} from './models/causal_lm.ts';
export { AutoConfig, type ConfigParser, type ModelConfig, registerConfig } from './models/config.ts';
export { type BaseDefaults, readBaseConfig } from './models/config-base.ts';
export type { ConfigReader } from './models/config-reader.ts';
export {
  type DecoderConfig,
  type DecoderDefaults,
  type LayerType,
  readDecoderConfig,
  windowOf,
} from './models/decoder-config.ts';
export type { GenerateOptions } from './models/generate.ts';
export { GPTNeoXForCausalLM, GPTNeoXLayer, gptNeoXPlan } from './models/gpt-neox.ts';
export type { GPTNeoXConfig } from './models/gpt-neox-config.ts';
export {
  type DecoderLayer,
  type DecoderLayerClass,
  decoderPlan,
  type LayerContext,
  LlamaAttention,
  LlamaDecoderLayer,
  LlamaForCausalLM,
  LlamaMLP,
  llamaPlan,
} from './models/llama.ts';
export type { LlamaConfig } from './models/llama-config.ts';
export { MistralForCausalLM } from './models/mistral.ts';
export type { MistralConfig } from './models/mistral-config.ts';
export { MixtralDecoderLayer, MixtralForCausalLM, mixtralPlan } from './models/mixtral.ts';
export type { MixtralConfig } from './models/mixtral-config.ts';
export { Qwen2ForCausalLM } from './models/qwen2.ts';
export type { Qwen2Config } from './models/qwen2-config.ts';
export { Qwen3DecoderLayer, Qwen3ForCausalLM, qwen3Plan } from './models/qwen3.ts';
export type { Qwen3Config } from './models/qwen3-config.ts';
export { inverseFrequencies, rotaryDim } from './models/rope.ts';
export { type RopeParameters, type RopeType, readRopeParameters } from './models/rope-config.ts';

// Adapters

export type { LoraConfig, LoraOptions } from './adapt/config.ts';
export { type LoadAdapterOptions, loadAdapter, saveAdapter } from './adapt/files.ts';
export { applyLora, disableAdapter, setAdapter } from './adapt/lora.ts';
export { mergeAdapter, unmergeAdapter } from './adapt/merge.ts';
export { type QuantizationScheme, type QuantizeOptions, quantize } from './adapt/quantize.ts';

// Checkpoints

export type { FilePart } from './checkpoint/hf-files.ts';
export { type LoadShardedOptions, loadShardedCheckpoint, saveShardedCheckpoint } from './checkpoint/sharded.ts';
export { loadSafetensors, saveSafetensors } from './checkpoint/tensors.ts';
export { FileFormatError } from './core/json.ts';
export { type ConvertOptions, type ConvertReport, convertCheckpoint } from './tools/convert/convert.ts';

// Data

export type { Batch } from './data/batch.ts';
export { type ChatMessage, ChatTemplate, type RenderOptions } from './data/chat-template.ts';
export { type DatasetReport, loadDataset, TokenDataset } from './data/dataset.ts';
export { type Example, type ExampleOptions, tokenizeRecord } from './data/examples.ts';
export { type DataRecord, readJsonl } from './data/jsonl.ts';
export { DataLoader, type DataLoaderOptions, type DataLoaderState, type DataStep } from './data/loader.ts';
export { packRows } from './data/packing.ts';
export { AutoTokenizer, type DecodeOptions, type EncodeOptions, Tokenizer } from './data/tokenizer.ts';

// Ranks

export { type DeviceChoice, type SelectedDevice, selectDevice } from './distributed/compute_device.ts';
export { DeviceMesh, initDeviceMesh } from './distributed/device_mesh.ts';
export { dist } from './distributed/index.ts';
export { ProcessGroup } from './distributed/process_group.ts';

// Parallelism

export { applyActivationCheckpointing } from './parallel/checkpointing.ts';
export {
  DelayedParamIniter,
  type DelayedParamIniterOptions,
  emptyModuleParams,
  numParameters,
} from './parallel/delayed_param.ts';
export { FullyShardedDataParallel } from './parallel/fsdp/fsdp.ts';
export type { FsdpOptions, MixedPrecision, ShardingStrategy, SyncProgress } from './parallel/fsdp/options.ts';
export type {
  FullStateDictOptions,
  LocalStateDict,
  ShardedStateDict,
  ShardedTensor,
} from './parallel/fsdp/state_dict.ts';
export {
  lambdaAutoWrapPolicy,
  moduleListPolicy,
  sizeBasedAutoWrapPolicy,
  transformerAutoWrapPolicy,
  type WrapPolicy,
} from './parallel/fsdp/wrap_policy.ts';
export type { Recomputation } from './parallel/recomputation.ts';
export {
  type InitConfig,
  init,
  type ParallelState,
  state,
  type TransformOptions,
  transform,
} from './parallel/tensor/index.ts';

// Training

export { Adafactor, type AdafactorOptions } from './optim/adafactor.ts';
export { AdamW, type AdamWOptions } from './optim/adamw.ts';
export { AdamW8bit, type AdamW8bitOptions } from './optim/adamw8bit.ts';
export type { Optimizer } from './optim/optimizer.ts';
export { type ScheduleName, scheduleFactor } from './optim/schedule.ts';
export { SGD, type SGDOptions } from './optim/sgd.ts';
export type { Decays } from './optim/slice_optimizer.ts';
export { type Evaluation, evaluate } from './train/evaluate.ts';
export { runFinetune } from './train/finetune.ts';
export {
  type FinetuneInput,
  type FinetuneOptions,
  resolveFinetuneOptions,
  type StrategyName,
} from './train/options.ts';
export { createReporter } from './train/report/index.ts';
export type {
  EvalRecord,
  LoadProgress,
  ProfileRecord,
  Reporter,
  RunInfo,
  RunSummary,
  SampleRecord,
  StepRecord,
} from './train/reporter.ts';
export { NonFiniteError, Trainer, type TrainerHooks, type TrainerOptions } from './train/trainer.ts';

// Profiles and plans

export { recordFunction } from './core/recorder.ts';
export {
  type Profile,
  type ProfileOptions,
  profile,
  type SavedProfile,
  type SaveProfileOptions,
} from './profile/profile.ts';
export type { OpSummary, ProfileSummary, StreamSummary } from './profile/summary.ts';
export type { TableOptions } from './profile/table.ts';
export { type PlanOptions, planRun } from './tools/plan/plan.ts';
export type { PlannedMemory, PlanReport } from './tools/plan/report.ts';
