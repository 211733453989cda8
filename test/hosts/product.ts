// What must give the reference's numbers on several hosts: the product of families, flows, strategies, tensor parallelism and
// placements, and a subset in which every two values of two factors meet once. The subset is a test; the product is a command
// (`npm run test:hosts`).
import type { Settings } from '../multi/reference_run.ts';
import { familyCases } from '../reference/family.ts';

export interface Placement {
  name: string;
  /** World ranks of each host. */
  ranks: readonly (readonly number[])[];
}

const placements: readonly Placement[] = [
  { name: '2 hosts × 1', ranks: [[0], [1]] },
  {
    name: '2 hosts × 2',
    ranks: [
      [0, 1],
      [2, 3],
    ],
  },
  {
    name: '2 hosts × 2, cyclic',
    ranks: [
      [0, 2],
      [1, 3],
    ],
  },
  { name: '3 hosts × 1', ranks: [[0], [1], [2]] },
];

const strategies = ['FULL_SHARD', 'SHARD_GRAD_OP', 'HYBRID_SHARD', 'NO_SHARD'] as const;
const flows = ['0', 'A', 'B', 'C'] as const;
/** Tensor-parallel degrees: within a host, across hosts (4 ranks of one layer on 2 hosts), none. */
const degrees = [1, 2, 4] as const;

export interface Case {
  placement: Placement;
  settings: Settings;
}

function isPossible({ placement, settings }: Case): boolean {
  const { tp = 1, flow, shardingStrategy, world } = settings;
  if (tp === 1) return true;
  // Flows 0 and A have no transform; shards within a host want whole tensor-parallel groups there.
  const divides = world % tp === 0 && (shardingStrategy !== 'HYBRID_SHARD' || placement.ranks[0]!.length % tp === 0);
  return divides && (flow === 'B' || flow === 'C');
}

/** Every case that exists, one placement after the other. */
export function wholeProduct(): Case[] {
  const all: Case[] = [];
  for (const placement of placements)
    for (const tp of degrees)
      for (const shardingStrategy of strategies)
        for (const flow of flows)
          for (const name of familyCases)
            all.push({
              placement,
              settings: { name, world: placement.ranks.flat().length, tp, flow, shardingStrategy },
            });
  return all.filter(isPossible);
}

const valuesOf = ({ placement, settings }: Case): string[] => [
  placement.name,
  settings.name,
  `tp ${settings.tp}`,
  settings.shardingStrategy!,
  `flow ${settings.flow}`,
];

function* pairsOf(one: Case): Generator<string> {
  const values = valuesOf(one);
  for (let i = 0; i < values.length; i++) for (let j = 0; j < i; j++) yield `${values[j]} & ${values[i]}`;
}

/** A subset of the product with every pair of values that occurs in it: greedily, always the case with most new pairs. */
export function pairwise(all: readonly Case[]): Case[] {
  const open = new Set(all.flatMap((one) => [...pairsOf(one)]));
  const chosen: Case[] = [];
  while (open.size > 0) {
    let best: Case | undefined;
    let most = 0;
    for (const one of all) {
      let count = 0;
      for (const pair of pairsOf(one)) if (open.has(pair)) count++;
      if (count > most) [best, most] = [one, count];
    }
    chosen.push(best!);
    for (const pair of pairsOf(best!)) open.delete(pair);
  }
  return chosen;
}

/** Cases that run in one job: of one placement and one tensor-parallel degree. */
export function jobsOf(cases: readonly Case[]): { title: string; placement: Placement; settings: Settings[] }[] {
  const jobs = new Map<string, { title: string; placement: Placement; settings: Settings[] }>();
  for (const { placement, settings } of cases) {
    const title = `${placement.name}, tensor-parallel degree ${settings.tp}`;
    const job = jobs.get(title) ?? { title, placement, settings: [] };
    job.settings.push(settings);
    jobs.set(title, job);
  }
  return [...jobs.values()];
}
