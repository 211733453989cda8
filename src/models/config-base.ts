// The keys that every decoder family has, with the checks that hold between them.
import { FileFormatError } from '../core/json.ts';
import type { ModelConfig } from './config.ts';
import type { ConfigReader } from './config-reader.ts';

/** Defaults of a family, for keys that its config.json leaves out. */
export interface BaseDefaults {
  readonly vocabSize: number;
  readonly hiddenSize: number;
  readonly numHiddenLayers: number;
  readonly numAttentionHeads: number;
  /** Default: as many as attention heads. */
  readonly numKeyValueHeads?: number;
  /** Default: hiddenSize / numAttentionHeads. */
  readonly headDim?: number;
  readonly maxPositionEmbeddings: number;
  readonly bosTokenId: number | null;
  readonly eosTokenId: number | null;
  readonly tieWordEmbeddings: boolean;
}

/** Reads the common keys of a config. Errors also for heads that do not divide. */
export function readBaseConfig(reader: ConfigReader, defaults: BaseDefaults): ModelConfig {
  const hiddenSize = reader.size('hidden_size', defaults.hiddenSize);
  const numAttentionHeads = reader.size('num_attention_heads', defaults.numAttentionHeads);
  const numKeyValueHeads =
    reader.sizeOrNull('num_key_value_heads', defaults.numKeyValueHeads ?? null) ?? numAttentionHeads;
  if (numAttentionHeads % numKeyValueHeads !== 0) {
    const wanted = `must be a divisor of num_attention_heads (${numAttentionHeads})`;
    throw new FileFormatError(reader.file, `num_key_value_heads ${wanted}, got ${numKeyValueHeads}`);
  }
  const perHead = defaults.headDim ?? hiddenSize / numAttentionHeads;
  if (!reader.has('head_dim') && !Number.isInteger(perHead)) {
    const problem = `must be a multiple of num_attention_heads (${numAttentionHeads}) unless head_dim is given`;
    throw new FileFormatError(reader.file, `hidden_size (${hiddenSize}) ${problem}`);
  }
  const headDim = reader.size('head_dim', perHead);
  if (headDim % 2 !== 0)
    throw new FileFormatError(reader.file, `head_dim must be even for rotary embeddings, got ${headDim}`);
  warnOfDropout(reader);
  return {
    modelType: reader.string('model_type'),
    architectures: reader.strings('architectures'),
    dtype: reader.dtype(),
    vocabSize: reader.size('vocab_size', defaults.vocabSize),
    hiddenSize,
    numHiddenLayers: reader.size('num_hidden_layers', defaults.numHiddenLayers),
    numAttentionHeads,
    numKeyValueHeads,
    headDim,
    maxPositionEmbeddings: reader.size('max_position_embeddings', defaults.maxPositionEmbeddings),
    initializerRange: reader.nonNegative('initializer_range', 0.02),
    tieWordEmbeddings: reader.boolean('tie_word_embeddings', defaults.tieWordEmbeddings),
    bosTokenId: reader.tokenId('bos_token_id', defaults.bosTokenId),
    eosTokenId: reader.tokenIds('eos_token_id', defaults.eosTokenId),
    padTokenId: reader.tokenId('pad_token_id', null),
    raw: reader.json,
    floatKeys: reader.floatKeys,
  };
}

const dropouts = ['attention_dropout', 'attention_probs_dropout_prob', 'hidden_dropout', 'hidden_dropout_prob'];

function warnOfDropout(reader: ConfigReader): void {
  const asked = dropouts.filter((key) => reader.nonNegative(key, 0) > 0);
  if (asked.length > 0) console.warn(`rankzero: ${reader.file}: dropout is not applied (${asked.join(', ')})`);
}
