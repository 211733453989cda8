// `rankzero doctor --hosts`, run once on each host, as `rankzero run --nnodes` is: do the hosts reach each other, and how well?
import { fileURLToPath } from 'node:url';
import { flagNames, LaunchError, planLaunch } from '../distributed/launch_plan.ts';
import { launchPlan } from '../distributed/launcher.ts';
import { variables } from '../environment.ts';
import { type LaunchKey, parseLaunchFlags } from './launch_flags.ts';

/** Flags of `doctor` that go with --hosts. */
export interface HostsOptions extends Partial<Record<Exclude<LaunchKey, 'nproc'>, string>> {
  json?: boolean;
  path?: string;
}

/** Resolves to the exit code of the command, the same on all hosts. */
export async function doctorHosts({ json = false, path, ...place }: HostsOptions): Promise<number> {
  const flags = parseLaunchFlags(place);
  const plan = planLaunch({ ...flags, nproc: 1 }, variables());
  if (plan.kind !== 'node' || plan.nnodes.value === 1)
    throw new LaunchError(
      `--hosts is started once on each of several hosts, with ${flagNames.nnodes}, ${flagNames.nodeRank} and ` +
        `${flagNames.masterAddress} or a launcher that says so, e.g. srun --ntasks-per-node 1`,
    );
  const script = fileURLToPath(new URL('./doctor_hosts_worker.js', import.meta.url));
  const { code } = await launchPlan(plan, async () => ({ script, args: [JSON.stringify({ json, path })] }));
  return code;
}
