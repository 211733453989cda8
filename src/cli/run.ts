// `rankzero run [--nproc N] [where this host stands] script.js [args…]`
import { flagNames, LaunchError, type LaunchFlags, planLaunch } from '../distributed/launch_plan.ts';
import { launchPlan } from '../distributed/launcher.ts';
import { describeError } from './errors.ts';
import { LaunchFlagError, type LaunchKey, ownSpelling, parseLaunchFlags } from './launch_flags.ts';

export const runUsage = `usage: rankzero run --nproc N [options] script.js [arguments of the script]

Starts N ranks of script.js on this host, with RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE, GROUP_RANK, MASTER_ADDR
and MASTER_PORT as torchrun sets them. If a rank fails, its error is shown, the others are ended, and its exit code is
the command's. Ctrl-C lets the ranks end by themselves; a second one kills them. SIGTERM is passed on to the ranks,
which have RANKZERO_GRACE seconds (25) to end.

  --nproc N                  ranks on this host; gpu: one for each GPU; auto: as gpu, or 1 without any
                             (also: --nproc-per-node N)
  --master-port P            default: MASTER_PORT, else a free pair of ports (the rendezvous store uses P + 1)

On several hosts, once on each, with RANKZERO_SECRET or RANKZERO_SECRET_FILE the same on all:

  --nnodes N                 hosts
  --node-rank R              the number of this one, from 0
  --master-address H[:PORT]  host 0, as the others reach it; [::1]:PORT for IPv6; the port is 29500 unless given

What is left out comes from the environment of Slurm, Open MPI, MPICH, the Kubeflow operators or SageMaker. Where such a
launcher has started a process for each rank, leave --nproc out: each of them becomes that rank.
`;

class UsageError extends Error {}

interface RunArguments {
  flags: LaunchFlags;
  script: string;
  args: readonly string[];
}

const keys: ReadonlyMap<string, LaunchKey> = new Map(
  Object.entries(flagNames).map(([key, flag]) => [flag, key as LaunchKey]),
);

/** @internal Options end at the script; everything after it belongs to the script. */
export function parseRun(argv: readonly string[]): RunArguments {
  const given: Partial<Record<LaunchKey, string>> = {};
  let i = 0;
  for (; i < argv.length && argv[i]!.startsWith('-'); i++) {
    const [name, ...inline] = ownSpelling(argv[i]!).split('=') as [string, ...string[]];
    const key = keys.get(name);
    if (!key) throw new UsageError(`unknown option ${name}`);
    given[key] = inline.length > 0 ? inline.join('=') : (argv[++i] ?? '');
  }
  const flags = parseLaunchFlags(given);
  const script = argv[i];
  if (script === undefined) throw new UsageError('the script is missing');
  return { flags, script, args: argv.slice(i + 1) };
}

/** Runs the command; resolves to its exit code. `argv` is what follows `rankzero run`. */
export async function runCommand(argv: readonly string[]): Promise<number> {
  if (argv[0] === '--help' || argv[0] === '-h') {
    process.stdout.write(runUsage);
    return 0;
  }
  try {
    const { flags, script, args } = parseRun(argv);
    return (await launchPlan(planLaunch(flags, process.env), async () => ({ script, args }))).code;
  } catch (error) {
    const isUsage = [UsageError, LaunchFlagError, LaunchError].some((kind) => error instanceof kind);
    process.stderr.write(`rankzero run: ${describeError(error)}\n${isUsage ? `\n${runUsage}` : ''}`);
    return isUsage ? 2 : 1;
  }
}
