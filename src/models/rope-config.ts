// Rotary embedding settings in their two spellings: `rope_parameters` (Transformers 5), or `rope_theta` beside
// `rope_scaling` with `rope_type` or the still older `type`.
import { describe, FileFormatError } from '../core/json.ts';
import type { ConfigReader } from './config-reader.ts';

export type RopeType = 'default' | 'linear' | 'llama3';

/** How rotary frequencies are made: θ^(-2i/d), then scaled by type. */
export interface RopeParameters {
  readonly ropeType: RopeType;
  readonly ropeTheta: number;
  /** Part of each head that is rotated. */
  readonly partialRotaryFactor: number;
  /** `linear` divides all frequencies by it, `llama3` the low ones. */
  readonly factor?: number | undefined;
  readonly lowFreqFactor?: number | undefined;
  readonly highFreqFactor?: number | undefined;
  readonly originalMaxPositionEmbeddings?: number | undefined;
}

const supported: readonly RopeType[] = ['default', 'linear', 'llama3'];

/** Reads either spelling; `defaults` are the family's. */
export function readRopeParameters(
  reader: ConfigReader,
  defaults: { ropeTheta?: number; partialRotaryFactor?: number } = {},
): RopeParameters {
  const nested = reader.object('rope_parameters') ?? reader.object('rope_scaling');
  const theta = reader.positive('rope_theta', defaults.ropeTheta ?? 10_000);
  const part = reader.positive('partial_rotary_factor', defaults.partialRotaryFactor ?? 1);
  const ropeTheta = nested?.positive('rope_theta', theta) ?? theta;
  const partialRotaryFactor = nested?.positive('partial_rotary_factor', part) ?? part;
  if (partialRotaryFactor > 1) {
    const message = `the part of a head that is rotated must be at most 1, got ${partialRotaryFactor}`;
    throw new FileFormatError(reader.file, message);
  }
  const type = nested?.get('rope_type') ?? nested?.get('type') ?? 'default';
  if (!supported.includes(type as RopeType)) {
    const names = supported.map((name) => `"${name}"`).join(', ');
    throw new FileFormatError(reader.file, `rope type ${describe(type)} is not supported; supported are ${names}`);
  }
  const ropeType = type as RopeType;
  const base = { ropeType, ropeTheta, partialRotaryFactor };
  if (ropeType === 'default' || !nested) return base;
  const factor = nested.positive('factor');
  if (ropeType === 'linear') return { ...base, factor };

  const lowFreqFactor = nested.positive('low_freq_factor');
  const highFreqFactor = nested.positive('high_freq_factor');
  if (highFreqFactor <= lowFreqFactor) throw nested.bad('high_freq_factor', `above low_freq_factor (${lowFreqFactor})`);
  const key = 'original_max_position_embeddings';
  const originalMaxPositionEmbeddings = reader.has(key) ? reader.size(key) : nested.size(key);
  return { ...base, factor, lowFreqFactor, highFreqFactor, originalMaxPositionEmbeddings };
}
