// Answers to sample prompts, greedy, so that before and after can be compared.
import type { Tokenizer } from '../data/tokenizer.ts';
import type { CausalLM } from '../models/causal_lm.ts';
import type { FullyShardedDataParallel } from '../parallel/fsdp/fsdp.ts';

/** Tokens of an answer at most. */
const answerTokens = 80;

/** The model's answer. With a chat template the prompt is a user's message, as in training. Collective. */
export async function answer(
  fsdp: FullyShardedDataParallel<CausalLM>,
  tokenizer: Tokenizer,
  prompt: string,
): Promise<string> {
  const ids = tokenizer.chatTemplate
    ? tokenizer.applyChatTemplate([{ role: 'user', content: prompt }], { addGenerationPrompt: true })
    : withoutEnd(tokenizer.encode(prompt), tokenizer);
  const { config, training } = fsdp.module as CausalLM;
  const stop = [config.eosTokenId ?? [], tokenizer.eosTokenId ?? []].flat();
  const room = config.maxPositionEmbeddings - ids.length;
  if (room < 1) return '';
  fsdp.eval();
  try {
    const all = await fsdp.generate(ids, { maxNewTokens: Math.min(answerTokens, room), eosTokenId: stop });
    return tokenizer.decode(all.slice(ids.length), { skipSpecialTokens: true }).trim();
  } finally {
    fsdp.train(training);
  }
}

/** Tokenizers may end every text, also one that is to go on. */
function withoutEnd(ids: number[], tokenizer: Tokenizer): number[] {
  return ids.at(-1) === tokenizer.eosTokenId ? ids.slice(0, -1) : ids;
}
