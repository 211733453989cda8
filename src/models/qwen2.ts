// Qwen2 and Qwen2.5 (model_type "qwen2"): Llama's decoder with biases on queries, keys and values, and a window by layer.
import type { ParallelPlan } from '../nn/plan.ts';
import { LlamaForCausalLM, llamaPlan } from './llama.ts';
import type { Qwen2Config } from './qwen2-config.ts';

/** How Qwen2 is divided. */
export const qwen2Plan: ParallelPlan = llamaPlan;

export class Qwen2ForCausalLM extends LlamaForCausalLM<Qwen2Config> {}
