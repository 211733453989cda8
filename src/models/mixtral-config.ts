// MixtralConfig of Transformers: the same keys in camelCase, the same defaults.
import type { ConfigReader } from './config-reader.ts';
import { type DecoderConfig, readDecoderConfig } from './decoder-config.ts';

/** Settings of Mixtral models. */
export interface MixtralConfig extends DecoderConfig {
  readonly modelType: 'mixtral';
  readonly slidingWindow: number | null;
  readonly numLocalExperts: number;
  /** Experts that each token goes to. */
  readonly numExpertsPerTok: number;
  /** Whether the loss has the load balancing term. */
  readonly outputRouterLogits: boolean;
  readonly routerAuxLossCoef: number;
}

/** Error for router_jitter_noise other than 0, which is not built. */
export function parseMixtralConfig(reader: ConfigReader): MixtralConfig {
  const common = readDecoderConfig(reader, {
    vocabSize: 32_000,
    hiddenSize: 4096,
    intermediateSize: 14_336,
    numHiddenLayers: 32,
    numAttentionHeads: 32,
    numKeyValueHeads: 8,
    maxPositionEmbeddings: 131_072,
    rmsNormEps: 1e-5,
    ropeTheta: 1_000_000,
    bosTokenId: 1,
    eosTokenId: 2,
    tieWordEmbeddings: false,
  });
  const numLocalExperts = reader.size('num_local_experts', 8);
  const numExpertsPerTok = reader.size('num_experts_per_tok', 2);
  if (numExpertsPerTok > numLocalExperts)
    throw reader.bad('num_experts_per_tok', `at most num_local_experts (${numLocalExperts})`);
  if (reader.nonNegative('router_jitter_noise', 0) > 0)
    throw reader.bad('router_jitter_noise', '0 (noise in the router is not supported)');
  return {
    ...common,
    modelType: 'mixtral',
    slidingWindow: reader.sizeOrNull('sliding_window', null),
    numLocalExperts,
    numExpertsPerTok,
    outputRouterLogits: reader.boolean('output_router_logits', false),
    routerAuxLossCoef: reader.nonNegative('router_aux_loss_coef', 0.001),
  };
}
