// Inverse frequencies of the rotary embedding from a config, as Transformers' ROPE_INIT_FUNCTIONS, rounded like float32 there.
import type { RopeParameters } from './rope-config.ts';

/** Elements of each head that are rotated, as Transformers rounds it. */
export function rotaryDim(rope: RopeParameters, headDim: number): number {
  return Math.trunc(headDim * rope.partialRotaryFactor);
}

/** inv_freq (rotaryDim / 2) float32. It follows from the config, and so is no part of checkpoints. */
export function inverseFrequencies(rope: RopeParameters, rotaryDim: number): Float32Array {
  const inverse = Float32Array.from({ length: rotaryDim / 2 }, (_, i) => {
    // float32 exponent and power, as torch.arange(...).float() / dim and base ** it
    const exponent = Math.fround((2 * i) / rotaryDim);
    return 1 / Math.fround(rope.ropeTheta ** exponent);
  });
  if (rope.ropeType === 'linear') return inverse.map((f) => f / rope.factor!);
  if (rope.ropeType === 'llama3') return llama3(inverse, rope);
  return inverse;
}

// Long wavelengths are divided by the factor, short ones kept, those between interpolated.
function llama3(inverse: Float32Array, rope: RopeParameters): Float32Array {
  const factor = rope.factor!;
  const low = rope.lowFreqFactor!;
  const high = rope.highFreqFactor!;
  const original = rope.originalMaxPositionEmbeddings!;
  return inverse.map((f) => {
    const wavelength = Math.fround((2 * Math.PI) / f);
    if (wavelength > original / low) return f / factor;
    if (wavelength < original / high) return f;
    const smooth = Math.fround((Math.fround(original / wavelength) - low) / (high - low));
    return Math.fround(Math.fround((1 - smooth) * f) / factor) + Math.fround(smooth * f);
  });
}
