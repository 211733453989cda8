// Mistral (model_type "mistral"): Llama's decoder, and a query sees at most `sliding_window` keys.
import type { ParallelPlan } from '../nn/plan.ts';
import { LlamaForCausalLM, llamaPlan } from './llama.ts';
import type { MistralConfig } from './mistral-config.ts';

/** How Mistral is divided. */
export const mistralPlan: ParallelPlan = llamaPlan;

export class MistralForCausalLM extends LlamaForCausalLM<MistralConfig> {}
