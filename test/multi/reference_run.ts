// Runs the reference fixture and judges what its ranks say.
import { readFileSync } from 'node:fs';
import { expect } from 'vitest';
import { caseDir, trainingRun } from '../reference/cases.ts';
import { expectRanks, fixture } from './helpers.ts';

export interface Settings {
  name: string;
  world: number;
  flow?: '0' | 'A' | 'B' | 'C';
  tp?: number;
  sequenceParallel?: boolean;
  shardingStrategy?: string;
  hybridShardDegree?: number;
  mesh?: number[];
  checkpoint?: boolean;
  accumulate?: number;
  noSync?: boolean;
  prefetch?: boolean;
  withoutPost?: boolean;
  mixedPrecision?: object;
  steps?: number;
  /** As ranks whose memory cannot be mapped do. */
  gather?: 'copy';
  device?: 'cuda';
  /** Each rank trains on a row of its own, and not on the whole batch. */
  ownRows?: boolean;
}

export interface Result {
  rank: number;
  logitError: number;
  /** By parameter: squared difference over the whole's squares, of this rank's part. */
  gradErrors: Record<string, { error: number; isFirst: boolean }>;
  losses: number[];
  norms: number[];
  digest: string;
  tied: boolean;
  tiedStorage: boolean;
  /** Of `state`, where the run called init. */
  place?: {
    sizes: Record<'rank' | 'worldSize' | 'shardRank' | 'shardSize' | 'replicateRank' | 'replicateSize', number>;
    replicas: number[];
    loss: number[];
    experts: Record<'expertShard' | 'expert', number[]>;
    shardIsExpertShard: boolean;
  };
}

/** What every rank says of each run; the runs share one job, and so a world size and an environment. */
export async function runAll(settings: Settings[], env: Record<string, string> = {}): Promise<Result[][]> {
  const { stdout } = await expectRanks(settings[0]!.world, fixture('fsdp_reference.mjs'), {
    args: [JSON.stringify(settings)],
    timeout: 180_000,
    env,
  });
  return resultsOf(stdout, settings.length);
}

/** What the fixture printed on each rank, by run. */
export function resultsOf(stdout: readonly string[], numRuns: number): Result[][] {
  const perRank = stdout.map((text) =>
    text
      .split('RESULT ')
      .slice(1)
      .map((json) => JSON.parse(json) as Result),
  );
  return Array.from({ length: numRuns }, (_, i) => perRank.map((results) => results[i]!));
}

export const run = async (settings: Settings): Promise<Result[]> => (await runAll([settings]))[0]!;

export const relative = (a: number, b: number): number => Math.abs(a / b - 1);

function isTied(name: string): boolean {
  return JSON.parse(readFileSync(`${caseDir(name)}/config.json`, 'utf8')).tie_word_embeddings;
}

/** Against Transformers; and all ranks hold the same model, to the bit. */
export function expectReference(results: Result[], { name, accumulate = 1, steps, tp = 1 }: Settings): void {
  const reference = trainingRun(name);
  for (const result of results) {
    expect(result.logitError, `${name}: logits`).toBeLessThan(1e-5);
    expect(result.losses.length).toBe(steps ?? reference.steps);
    // Accumulated gradients are the reference's times the number of passes; clipping makes the updates the same.
    for (const [i, loss] of result.losses.entries())
      expect(relative(loss, reference.losses[i]!), `${name}: loss ${i}`).toBeLessThan(1e-5);
    for (const [i, norm] of result.norms.entries()) {
      expect(relative(norm / accumulate, reference.grad_norms[i]!), `${name}: norm ${i}`).toBeLessThan(1e-5);
    }
    expect(result.losses).toEqual(results[0]!.losses);
    expect(result.norms).toEqual(results[0]!.norms);
    expect(result.digest).toBe(results[0]!.digest);
    expect(result.tied).toBe(isTied(name));
    expect(result.tiedStorage).toBe(result.tied);
  }
  // Each group of tensor-parallel ranks together holds every gradient.
  for (let first = 0; first < results.length; first += tp) {
    const group = results.slice(first, first + tp);
    const names = Object.keys(group[0]!.gradErrors);
    expect(names.length).toBeGreaterThan(19);
    for (const parameter of names) {
      const parts = group.map((result) => result.gradErrors[parameter]!);
      for (const { error } of parts) expect(Math.sqrt(error), `${name}: ${parameter}`).toBeLessThan(2e-5);
      const all = parts.filter(({ isFirst }) => isFirst).reduce((sum, { error }) => sum + error, 0);
      expect(Math.sqrt(all), `${name}: ${parameter}`).toBeLessThan(2e-5);
    }
  }
}
