// What activation checkpointing may run again. Nothing but names, so that options can be read without the addon.

/** @internal The one list of them: types, options and flags come from it. */
export const recomputations = ['all', 'selective'] as const;

/**
 * What a checkpointed module runs again in backward. `selective`: it keeps the result of attention too and, where a device adds the
 * residual in a GEMM, the sum of attention and residual, which is the input of the MLP: three tensors of a layer instead of one. The
 * attention itself, the projection behind it and the last projection of the layer do not run again.
 */
export type Recomputation = (typeof recomputations)[number];
