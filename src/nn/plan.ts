// How a family is divided over tensor-parallel ranks: data, keyed by module path. What is said of a module are the placements of
// its parameters, the layouts in which it wants its input and leaves its output, and which of its counts the ranks share out.
import type { AxisPlacement } from './placement.ts';

/** A placement before the number of ranks is known. */
export type PlannedPlacement =
  | {
      readonly kind: 'shard';
      readonly dim: 0 | 1;
      /** Key of the config whose number of things (heads) is divided: with fewer of them than ranks, neighbours share one. */
      readonly units?: string | undefined;
      /** The last part may reach beyond the whole. */
      readonly padded?: boolean | undefined;
      /** Rows of each piece of a fused dimension, from the config. */
      readonly segments?: ((config: Readonly<Record<string, unknown>>) => readonly number[]) | undefined;
    }
  | { readonly kind: 'replicate' }
  | { readonly kind: 'partial' };

/**
 * What is said of one module. Between modules every rank has all rows, whole or, with sequence parallelism, a part of them.
 */
export interface ModulePlan {
  /** By name; those that are not named are replicated. */
  readonly parameters?: Readonly<Record<string, PlannedPlacement>> | undefined;
  /** `whole`: it wants all rows, and gradients of its input are summed. */
  readonly input?: 'whole' | undefined;
  /** `partial`: a sum over the ranks is still to come. `whole`: what comes next wants all rows. */
  readonly output?: 'partial' | 'whole' | undefined;
  /** Properties that count things, and the key of the config that has the number in the whole model: `{ heads: 'numAttentionHeads' }`. */
  readonly counts?: Readonly<Record<string, string>> | undefined;
}

/** By module path; `*` stands for one component. Every module that holds parameters must be named. */
export type ParallelPlan = Readonly<Record<string, ModulePlan>>;

/** Rows of dimension 0 are divided. */
export function shardRows(
  options: Omit<Extract<PlannedPlacement, { kind: 'shard' }>, 'kind' | 'dim'> = {},
): PlannedPlacement {
  return { kind: 'shard', dim: 0, ...options };
}

const rows = shardRows();
const columns: PlannedPlacement = { kind: 'shard', dim: 1 };
const vocabulary = shardRows({ padded: true });

/** Output features of a Linear, bias too. The module above it gathers the input. */
export const columnParallel: ModulePlan = { parameters: { weight: rows, bias: rows } };
/** Input features of a Linear: its results are summed, and the bias is added once. */
export const rowParallel: ModulePlan = { parameters: { weight: columns } };
/** An Embedding or a head: rows of the vocabulary, padded so that the ranks have equally many. */
export const vocabParallel: ModulePlan = { parameters: { weight: vocabulary } };
/** Whole on every rank, with whole gradients: norms. */
export const replicated: ModulePlan = {};
/** Whole on every rank, which makes a part of the gradient: norms of single heads, routers. */
export const partialGradient: ModulePlan = {
  parameters: { weight: { kind: 'partial' }, bias: { kind: 'partial' } },
};
/** A module whose input every rank needs whole. */
export const gathersInput: ModulePlan = { input: 'whole' };
/** Experts: they need the input whole, and the ranks' results are summed. */
export const sumsOutput: ModulePlan = { input: 'whole', output: 'partial' };
/** The last norm, whose output the head needs whole. */
export const gathersOutput: ModulePlan = { output: 'whole' };

/** As `columnParallel`, by heads of a kind: `numKeyValueHeads` of the config, say. */
export function columnParallelBy(units: string): ModulePlan {
  const placement = shardRows({ units });
  return { parameters: { weight: placement, bias: placement } };
}

/** Attention: it needs the input whole, and has a part of the heads. */
export const headParallel: ModulePlan = {
  input: 'whole',
  counts: { heads: 'numAttentionHeads', kvHeads: 'numKeyValueHeads' },
};

/** The placement for `size` ranks. */
export function placementFor(planned: PlannedPlacement, config: object, size: number): AxisPlacement {
  if (planned.kind !== 'shard') return planned;
  const values = config as Readonly<Record<string, unknown>>;
  const { dim, units, segments } = planned;
  const parts = units === undefined ? size : partsOf(units, config, size);
  return { kind: 'shard', dim, parts, segments: segments?.(values) };
}

/** Into how many parts `size` ranks divide as many things as the config says under `units`. */
export function partsOf(units: string, config: object, size: number): number {
  const count = (config as Readonly<Record<string, unknown>>)[units];
  if (typeof count !== 'number') throw new TypeError(`the plan counts ${units}, which the config does not have`);
  return Math.min(count, size);
}
