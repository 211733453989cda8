// `rankzero run --nproc N [--master-port P] script.js [args…]`
import { launch } from '../distributed/launcher.ts';

export const runUsage = `usage: rankzero run --nproc N [--master-port P] script.js [arguments of the script]

Starts N ranks of script.js on this host, with RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE, MASTER_ADDR and
MASTER_PORT as torchrun sets them. If a rank fails, its error is shown, the others are ended, and its exit code is
the command's. Ctrl-C lets the ranks end by themselves; a second one kills them.

  --nproc N          ranks to start (also: --nproc-per-node N)
  --master-port P    default: MASTER_PORT, else a free pair of ports (the rendezvous store uses P + 1)
`;

class UsageError extends Error {}

interface RunArguments {
  nproc: number;
  masterPort: number | undefined;
  script: string;
  args: readonly string[];
}

function wholeNumber(name: string, text: string | undefined, most: number): number {
  const value = Number(text);
  if (text === undefined || text === '' || !Number.isInteger(value) || value < 1 || value > most) {
    throw new UsageError(
      `${name} needs a whole number from 1 to ${most} but got ${text === undefined ? 'nothing' : `"${text}"`}`,
    );
  }
  return value;
}

/** @internal Options end at the script; everything after it belongs to the script. */
export function parseRun(argv: readonly string[]): RunArguments {
  let nproc: number | undefined;
  let masterPort: number | undefined;
  let i = 0;
  for (; i < argv.length && argv[i]!.startsWith('-'); i++) {
    const [name, inline] = argv[i]!.split('=', 2) as [string, string | undefined];
    const value = (): string | undefined => inline ?? argv[++i];
    if (name === '--nproc' || name === '--nproc-per-node' || name === '--nproc_per_node')
      nproc = wholeNumber(name, value(), 1024);
    else if (name === '--master-port' || name === '--master_port') masterPort = wholeNumber(name, value(), 65534);
    else throw new UsageError(`unknown option ${name}`);
  }
  const script = argv[i];
  if (script === undefined) throw new UsageError('the script is missing');
  if (nproc === undefined) throw new UsageError('--nproc N is missing');
  return { nproc, masterPort, script, args: argv.slice(i + 1) };
}

/** Runs the command; resolves to its exit code. `argv` is what follows `rankzero run`. */
export async function runCommand(argv: readonly string[]): Promise<number> {
  if (argv[0] === '--help' || argv[0] === '-h') {
    process.stdout.write(runUsage);
    return 0;
  }
  try {
    return (await launch(parseRun(argv))).code;
  } catch (error) {
    process.stderr.write(
      `rankzero run: ${(error as Error).message}\n${error instanceof UsageError ? `\n${runUsage}` : ''}`,
    );
    return error instanceof UsageError ? 2 : 1;
  }
}
