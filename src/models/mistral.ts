// Mistral (model_type "mistral"): Llama's decoder, and a query sees at most `sliding_window` keys.
import type { TensorParallelPlan } from '../parallel/tensor/plan.ts';
import { LlamaForCausalLM, llamaPlan } from './llama.ts';
import type { MistralConfig } from './mistral-config.ts';

/** How Mistral is split. */
export const mistralPlan: TensorParallelPlan = llamaPlan;

export class MistralForCausalLM extends LlamaForCausalLM<MistralConfig> {}
