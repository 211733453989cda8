// Generation: greedy, temperature and top-p over cached keys and values.
import { noGrad } from '../tensor/grad_mode.ts';
import { LayerCache } from './cache.ts';
import type { CausalLM } from './causal_lm.ts';

export interface GenerateOptions {
  /** Default 64. */
  maxNewTokens?: number | undefined;
  /** 0 or absent: greedy. */
  temperature?: number | undefined;
  /** Keep the smallest set of tokens whose probability reaches this. Default 1. */
  topP?: number | undefined;
  /** Of the sampling. Default 0. */
  seed?: number | undefined;
  /** Ends the answer; default from the config. */
  eosTokenId?: number | readonly number[] | null | undefined;
  /** Called with each new token. */
  onToken?: ((id: number) => void) | undefined;
}

/** Continues one prompt; returns prompt and answer. */
export async function generate(
  model: CausalLM,
  prompt: readonly number[],
  options: GenerateOptions,
): Promise<number[]> {
  const { maxNewTokens = 64, temperature = 0, topP = 1, seed = 0 } = options;
  const vocab = model.config.vocabSize;
  const bad = prompt.find((id) => !Number.isInteger(id) || id < 0 || id >= vocab);
  if (prompt.length === 0) throw new RangeError('generate: the prompt is empty');
  if (bad !== undefined) throw new RangeError(`generate: id ${bad} is outside the vocabulary of ${vocab}`);
  if (!(topP > 0 && topP <= 1)) throw new RangeError(`generate: topP must be in (0, 1] but is ${topP}`);
  if (!(temperature >= 0)) throw new RangeError(`generate: temperature must be at least 0 but is ${temperature}`);
  const stop = new Set([options.eosTokenId ?? model.config.eosTokenId ?? []].flat() as number[]);
  const random = mulberry32(seed);
  const caches = Array.from({ length: model.numLayers }, () => new LayerCache(prompt.length + maxNewTokens));
  const ids = [...prompt];
  try {
    let next = Int32Array.from(prompt);
    for (let i = 0; i < maxNewTokens; i++) {
      const logits = noGrad(() => model.step(next, caches));
      const values = (await logits.data()) as Float32Array;
      logits.dispose();
      const id = temperature === 0 ? argmax(values) : sample(values, temperature, topP, random());
      ids.push(id);
      options.onToken?.(id);
      if (stop.has(id)) break;
      next = Int32Array.of(id);
    }
  } finally {
    for (const cache of caches) cache[Symbol.dispose]();
  }
  return ids;
}

function argmax(values: Float32Array): number {
  let best = 0;
  for (let i = 1; i < values.length; i++) if (values[i]! > values[best]!) best = i;
  return best;
}

/** Draws from softmax(logits / temperature) cut to its top-p nucleus; `u` in [0, 1). */
export function sample(logits: Float32Array, temperature: number, topP: number, u: number): number {
  const top = logits[argmax(logits)]!;
  const weights = Float64Array.from(logits, (x) => Math.exp((x - top) / temperature));
  const total = weights.reduce((a, b) => a + b, 0);
  const order = topP < 1 ? Array.from(weights.keys()).sort((a, b) => weights[b]! - weights[a]!) : [...weights.keys()];
  let kept = order.length;
  let mass = total;
  if (topP < 1) {
    mass = 0;
    for (kept = 0; kept < order.length && mass < topP * total; kept++) mass += weights[order[kept]!]!;
  }
  let left = u * mass;
  for (let i = 0; i < kept; i++) {
    left -= weights[order[i]!]!;
    if (left < 0) return order[i]!;
  }
  return order[kept - 1]!;
}

function mulberry32(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}
