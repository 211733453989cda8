// `rankzero finetune`: checks everything that can be checked in one process, then starts the ranks.
import { accessSync, constants, existsSync, statSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { Command } from 'commander';
import type { FinetuneOptions } from '../train/options.ts';
import { OptionsError } from '../train/options_schema.ts';
import { addFinetuneFlags, resolveFlags } from './flags.ts';

const examples = `
Data: one JSON object a line, with "text", "prompt" and "completion", or "messages".

Examples:
  rankzero finetune --model ./llama --data train.jsonl --out ./tuned --nproc 2
  rankzero finetune --model ./llama --data train.jsonl --eval-data eval.jsonl --out ./tuned \\
      --epochs 2 --lr 1e-5 --warmup-ratio 0.03 --save-steps 200 --sample-prompt "Who are you?"
  rankzero finetune --config finetune.yaml --lr 5e-5      (flags win over the file)
  rankzero finetune --config finetune.yaml --resume       (from the newest checkpoint in --out)
`;

/** The command with its flags; parsing it runs nothing. */
export function buildFinetuneCommand(): Command {
  const command = new Command('rankzero finetune')
    .description('Fine-tunes a Hugging Face decoder model: rank 0 loads it, the other ranks start on the meta device.')
    .option('--config <file>', 'YAML or JSON file with the same options as keys')
    .option('--print-config', 'print all options as YAML and stop')
    .showSuggestionAfterError()
    .addHelpText('after', examples);
  addFinetuneFlags(command);
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

/** Resolves to the exit code: 0, that of the rank that failed first, or 130 after Ctrl-C. */
export async function finetuneCommand(argv: string[]): Promise<number> {
  const { printConfig, ...flags } = buildFinetuneCommand().parse(argv, { from: 'user' }).opts();
  const options = await resolveFlags(flags);
  if (printConfig) {
    process.stdout.write((await import('yaml')).stringify(options));
    return 0;
  }
  checkFiles(options);
  await (await import('../checkpoint/hub.ts')).resolveModel(options.model);
  const { launch } = await import('../distributed/launcher.ts');
  let interrupted = false;
  process.once('SIGINT', () => {
    interrupted = true;
  });
  const { code } = await launch({
    nproc: options.nproc,
    script: fileURLToPath(new URL('./finetune_worker.js', import.meta.url)),
    args: [JSON.stringify(options)],
  });
  return code === 0 && interrupted ? 130 : code;
}
