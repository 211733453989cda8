// `rankzero finetune`: checks everything that can be checked in one process, then starts the ranks.
import { accessSync, constants, existsSync, statSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { Command, Option } from 'commander';
import { flagNames, planLaunch } from '../distributed/launch_plan.ts';
import type { FinetuneOptions } from '../train/options.ts';
import { OptionsError, parseFinetuneOptions } from '../train/options_schema.ts';
import { addFinetuneFlags, givenOptions } from './flags.ts';
import { type LaunchKey, ownSpelling, parseLaunchFlags } from './launch_flags.ts';

const examples = `
Data: one JSON object a line, with "text", "prompt" and "completion", or "messages".

Examples:
  rankzero finetune --model ./llama --data train.jsonl --out ./tuned --nproc 2
  rankzero finetune --model ./llama --data train.jsonl --eval-data eval.jsonl --out ./tuned \\
      --epochs 2 --lr 1e-5 --warmup-ratio 0.03 --save-steps 200 --sample-prompt "Who are you?"
  rankzero finetune --model ./llama --data train.jsonl --out ./adapter --lora-r 16 --lora-alpha 32 --lr 2e-4
      (a LoRA adapter in PEFT's format: rankzero generate --model ./llama --adapter ./adapter)
  rankzero finetune --config finetune.yaml --lr 5e-5      (flags win over the file)
  rankzero finetune --config finetune.yaml --resume       (from the newest checkpoint in --out)
  rankzero finetune --config finetune.yaml --nnodes 2 --node-rank 0 --master-address host0 --nproc gpu
      (the same on the other host with --node-rank 1; RANKZERO_SECRET or RANKZERO_SECRET_FILE the same on both)
  srun -N2 --ntasks-per-node 8 rankzero finetune --config finetune.yaml      (each task is a rank)
`;

/** Where this host stands among several: the flags of `rankzero run`. */
const hostFlags: readonly [flag: string, help: string][] = [
  ['--nnodes <n>', 'hosts, one command on each (default: as the launcher around it says, else 1)'],
  ['--node-rank <r>', 'the number of this host, from 0'],
  ['--master-address <host[:port]>', 'host 0, as the others reach it; [::1]:port for IPv6'],
  ['--master-port <port>', 'a port of host 0; the rendezvous store takes the one after it (default: 29500)'],
];

/** The command with its flags; parsing it runs nothing. */
export function buildFinetuneCommand(): Command {
  const command = new Command('rankzero finetune')
    .description('Fine-tunes a Hugging Face decoder model: rank 0 loads it, the other ranks start on the meta device.')
    .option('--config <file>', 'YAML or JSON file with the same options as keys')
    .option('--print-config', 'print all options as YAML and stop')
    .showSuggestionAfterError()
    .addHelpText('after', examples);
  addFinetuneFlags(command);
  for (const [flag, help] of hostFlags) command.addOption(new Option(flag, help).helpGroup('Hosts:'));
  return command;
}

/** Why a folder cannot be made or written at `path`, if so. */
function cannotBecomeFolder(path: string): string | undefined {
  let existing = resolve(path);
  while (!existsSync(existing)) existing = dirname(existing);
  if (!statSync(existing).isDirectory()) return `not a folder: ${existing}`;
  try {
    accessSync(existing, constants.W_OK);
    return undefined;
  } catch {
    return `cannot write to the folder ${existing}`;
  }
}

/** Finds what would stop every rank a minute later. */
export function checkFiles(options: FinetuneOptions): void {
  const problems: string[] = [];
  const isFile = (flag: string, path: string): void => {
    if (!existsSync(path)) problems.push(`--${flag}: no such file: ${path}`);
    else if (!statSync(path).isFile()) problems.push(`--${flag}: not a file: ${path}`);
    else if (statSync(path).size === 0) problems.push(`--${flag}: the file is empty: ${path}`);
  };
  if (existsSync(options.model) && !existsSync(join(options.model, 'config.json'))) {
    problems.push(`--model: ${options.model} has no config.json, so it is not a model folder`);
  }
  isFile('data', options.data);
  if (options.quantize && options.loraR === undefined && options.adapter === undefined)
    problems.push('--quantize: a quantised base is frozen, and is not saved; train an adapter on it with --lora-r');
  if (options.adapter !== undefined && !existsSync(join(options.adapter, 'adapter_config.json')))
    problems.push(`--adapter: ${options.adapter} has no adapter_config.json, so it is not the folder of an adapter`);
  if (options.evalData !== undefined) isFile('eval-data', options.evalData);
  if (existsSync(options.out) && !statSync(options.out).isDirectory()) {
    problems.push(`--out: not a folder: ${options.out}`);
  }
  if (options.profile !== undefined) {
    const problem = cannotBecomeFolder(options.profile);
    if (problem) problems.push(`--profile: ${problem}`);
  }
  if (options.resume !== undefined && options.resume !== 'auto' && !existsSync(options.resume)) {
    problems.push(`--resume: no such checkpoint: ${options.resume}`);
  }
  if (problems.length > 0) throw new OptionsError(problems.join('\n'));
}

/** Takes the keys of launch flags, in either spelling, out of `values`. */
function takeLaunchKeys(
  values: Record<string, unknown>,
): [Partial<Record<LaunchKey, unknown>>, Record<string, unknown>] {
  const rest = { ...values };
  const taken: Partial<Record<LaunchKey, unknown>> = {};
  for (const [key, flag] of Object.entries(flagNames) as [LaunchKey, string][]) {
    taken[key] = rest[key] ?? rest[flag.slice(2)];
    delete rest[key];
    delete rest[flag.slice(2)];
  }
  return [taken, rest];
}

/** Resolves to the exit code: 0, that of the rank that failed first, 130 after Ctrl-C, 143 after SIGTERM. */
export async function finetuneCommand(argv: string[]): Promise<number> {
  const { printConfig, ...given } = buildFinetuneCommand().parse(argv.map(ownSpelling), { from: 'user' }).opts();
  const { values, where } = await givenOptions(given);
  const [taken, rest] = takeLaunchKeys(values);
  const flags = parseLaunchFlags(taken, where);
  const optionsFor = (nproc: number): FinetuneOptions => parseFinetuneOptions({ ...rest, nproc }, where);
  if (printConfig) {
    const options = optionsFor(typeof flags.nproc === 'number' ? flags.nproc : 1);
    process.stdout.write((await import('yaml')).stringify(options));
    return 0;
  }
  const { launchPlan } = await import('../distributed/launcher.ts');
  const { code } = await launchPlan(
    planLaunch(flags, process.env, { otherwise: 1, nameOf: where }),
    async ({ worldSize, firstRank }) => {
      const options = optionsFor(worldSize);
      // The files may be on rank 0's host alone.
      if (firstRank === 0) {
        checkFiles(options);
        await (await import('../checkpoint/hub.ts')).resolveModel(options.model);
      }
      return {
        script: fileURLToPath(new URL('./finetune_worker.js', import.meta.url)),
        args: [JSON.stringify(options)],
      };
    },
  );
  return code;
}
