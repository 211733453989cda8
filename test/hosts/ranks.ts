// Starts a program on ranks of several hosts, one process a rank, as torchrun's environment does.
import { join } from 'node:path';
import type { Host, HostProcess, Lab } from './lab.ts';

export const secret = 'a-secret-of-the-tests';

export const multiFixture = (name: string): string => join(import.meta.dirname, '../multi/fixtures', name);
export const hostsFixture = (name: string): string => join(import.meta.dirname, 'fixtures', name);

export interface RankProcess extends HostProcess {
  rank: number;
  host: Host;
}

export interface RanksOptions {
  args?: readonly string[];
  env?: Record<string, string>;
  /** More variables of one rank. */
  envOf?: (rank: number) => Record<string, string>;
  /** Folders that a host lacks, or has otherwise. */
  mountsOf?: (host: number) => Record<string, 'empty' | string>;
  timeout?: number;
  onLine?: (rank: number, line: string) => void;
  /** The host whose address is MASTER_ADDR. Default: that of rank 0. */
  master?: Host;
  /** By IPv6. */
  v6?: boolean;
  port?: number;
}

/** `placement`: the ranks of each host of the lab, `[[0, 2], [1]]`. Resolves when all have ended. */
export function runOnHosts(
  lab: Lab,
  placement: readonly (readonly number[])[],
  script: string,
  options: RanksOptions = {},
): Promise<RankProcess[]> {
  const worldSize = placement.flat().length;
  const first = lab.hosts[placement.findIndex((ranks) => ranks.includes(0))]!;
  const master = options.master ?? first;
  const runs = placement.flatMap((ranks, i) =>
    ranks.map(async (rank, localRank): Promise<RankProcess> => {
      const host = lab.hosts[i]!;
      const env = {
        RANK: String(rank),
        WORLD_SIZE: String(worldSize),
        LOCAL_RANK: String(localRank),
        LOCAL_WORLD_SIZE: String(ranks.length),
        MASTER_ADDR: options.v6 ? master.address6 : master.address,
        MASTER_PORT: String(options.port ?? 29500),
        RANKZERO_SECRET: secret,
        RANKZERO_QUIET: '1',
        OMP_NUM_THREADS: '1',
        ...options.env,
        ...options.envOf?.(rank),
      };
      const onLine = (line: string): void => options.onLine?.(rank, line);
      const argv = [process.execPath, script, ...(options.args ?? [])];
      return {
        rank,
        host,
        ...(await host.run(argv, {
          env,
          timeout: options.timeout ?? 60_000,
          onLine,
          mounts: options.mountsOf?.(i) ?? {},
        })),
      };
    }),
  );
  return Promise.all(runs).then((ended) => ended.sort((a, b) => a.rank - b.rank));
}

/** Fails with everything that the ranks said unless all ended well. Returns their standard output, by rank. */
export async function expectOnHosts(
  lab: Lab,
  placement: readonly (readonly number[])[],
  script: string,
  options: RanksOptions = {},
): Promise<string[]> {
  const ended = await runOnHosts(lab, placement, script, options);
  if (ended.some(({ code }) => code !== 0)) {
    const texts = ended.map(
      ({ rank, code, signal, stdout, stderr }) => `rank ${rank}: ${signal ?? code}\n${stderr}${stdout}`,
    );
    throw new Error(texts.join('\n'));
  }
  return ended.map(({ stdout }) => stdout);
}
