// What the decoder of llama.ts reads of a config: the keys that Llama, Mistral, Mixtral and Qwen share.
import type { ModelConfig } from './config.ts';
import { type BaseDefaults, readBaseConfig } from './config-base.ts';
import type { ConfigReader } from './config-reader.ts';
import { type RopeParameters, readRopeParameters } from './rope-config.ts';

export type LayerType = 'full_attention' | 'sliding_attention';

export interface DecoderConfig extends ModelConfig {
  readonly intermediateSize: number;
  readonly hiddenAct: 'silu';
  readonly rmsNormEps: number;
  readonly ropeParameters: RopeParameters;
  /** Of the query, key and value projections, and of the output projection unless attentionOutputBias differs. */
  readonly attentionBias: boolean;
  readonly attentionOutputBias?: boolean | undefined;
  readonly mlpBias: boolean;
  /** Keys that a query of a sliding layer sees, its own included; null or absent: all earlier ones. */
  readonly slidingWindow?: number | null | undefined;
  /** By layer; absent: every layer slides if there is a window. */
  readonly layerTypes?: readonly LayerType[] | undefined;
}

/** Defaults of a family, for keys that its config.json leaves out. */
export interface DecoderDefaults extends BaseDefaults {
  readonly intermediateSize: number;
  /** Default 1e-6. */
  readonly rmsNormEps?: number;
  /** Default 10000. */
  readonly ropeTheta?: number;
}

/** The window of a layer's attention, 0 for none. */
export function windowOf(config: DecoderConfig, layer: number): number {
  return config.layerTypes?.[layer] === 'full_attention' ? 0 : (config.slidingWindow ?? 0);
}

/** Reads the common keys; biases are absent and attention is full unless the family says otherwise. */
export function readDecoderConfig(reader: ConfigReader, defaults: DecoderDefaults): DecoderConfig {
  return {
    ...readBaseConfig(reader, defaults),
    intermediateSize: reader.size('intermediate_size', defaults.intermediateSize),
    hiddenAct: reader.choice('hidden_act', ['silu'], 'silu'),
    rmsNormEps: reader.positive('rms_norm_eps', defaults.rmsNormEps ?? 1e-6),
    ropeParameters: readRopeParameters(reader, { ropeTheta: defaults.ropeTheta ?? 10_000 }),
    attentionBias: false,
    mlpBias: false,
  };
}
