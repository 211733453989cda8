// The families that the package brings, by model_type.
import type { ModelFamily } from './auto.ts';
import { GPTNeoXForCausalLM, gptNeoXPlan } from './gpt-neox.ts';
import type { GPTNeoXConfig } from './gpt-neox-config.ts';
import { LlamaForCausalLM, llamaPlan } from './llama.ts';
import type { LlamaConfig } from './llama-config.ts';
import { MistralForCausalLM, mistralPlan } from './mistral.ts';
import type { MistralConfig } from './mistral-config.ts';
import { fusedPart, MixtralForCausalLM, mixtralPlan } from './mixtral.ts';
import type { MixtralConfig } from './mixtral-config.ts';
import { Qwen2ForCausalLM, qwen2Plan } from './qwen2.ts';
import type { Qwen2Config } from './qwen2-config.ts';
import { Qwen3ForCausalLM, qwen3Plan } from './qwen3.ts';
import type { Qwen3Config } from './qwen3-config.ts';

// Files of older versions hold tables that the config gives.
const rotaryTables = /\.rotary_emb\.inv_freq$/;
const masksAndTables = /\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)$/;

/** @internal The config of a family is the one that its parser made (config.ts). */
export const builtInFamilies: Readonly<Record<string, ModelFamily>> = {
  gpt_neox: {
    create: (config, dtype) => new GPTNeoXForCausalLM(config as GPTNeoXConfig, dtype),
    ignoredKeys: masksAndTables,
    parallelPlan: gptNeoXPlan,
  },
  llama: {
    create: (config, dtype) => new LlamaForCausalLM(config as LlamaConfig, dtype),
    ignoredKeys: rotaryTables,
    parallelPlan: llamaPlan,
  },
  mistral: {
    create: (config, dtype) => new MistralForCausalLM(config as MistralConfig, dtype),
    ignoredKeys: rotaryTables,
    parallelPlan: mistralPlan,
  },
  mixtral: {
    create: (config, dtype) => new MixtralForCausalLM(config as MixtralConfig, dtype),
    ignoredKeys: rotaryTables,
    otherPart: (name, config) => fusedPart(name, config as MixtralConfig),
    parallelPlan: mixtralPlan,
  },
  qwen2: {
    create: (config, dtype) => new Qwen2ForCausalLM(config as Qwen2Config, dtype),
    ignoredKeys: rotaryTables,
    parallelPlan: qwen2Plan,
  },
  qwen3: {
    create: (config, dtype) => new Qwen3ForCausalLM(config as Qwen3Config, dtype),
    ignoredKeys: rotaryTables,
    parallelPlan: qwen3Plan,
  },
};
