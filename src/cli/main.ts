#!/usr/bin/env node
// `rankzero <command>`: finds the command and loads only what it needs.
import { packageVersion } from '../core/version.ts';
import { describeError } from './errors.ts';

interface Command {
  summary: string;
  /** The command itself: resolves to its exit code. */
  load: () => Promise<(argv: string[]) => Promise<number>>;
}

const commands: Record<string, Command> = {
  finetune: {
    summary: 'fine-tune a model on JSONL data, on one or more ranks',
    load: async () => (await import('./finetune.ts')).finetuneCommand,
  },
  plan: {
    summary: 'what a run will take on each rank: memory and traffic, before it takes any',
    load: async () => (await import('./plan.ts')).planCommand,
  },
  generate: {
    summary: 'continue a prompt, or answer a question, with a model',
    load: async () => (await import('./generate.ts')).generateCommand,
  },
  convert: {
    summary: 'between Hugging Face folders and checkpoints of any division',
    load: async () => (await import('./convert.ts')).convertCommand,
  },
  run: {
    summary: 'run a script on several ranks',
    load: async () => (await import('./run.ts')).runCommand,
  },
  doctor: {
    summary: 'check this machine and installation, with a numeric self-test',
    load: async () => (await import('./doctor.ts')).doctorCommand,
  },
};

const help = `Usage: rankzero <command> [options]

Fine-tunes Hugging Face decoder models on many ranks.
Rank 0 holds the checkpoint, the others start on the meta device.

Commands:
${Object.entries(commands)
  .map(([name, { summary }]) => `  ${name.padEnd(10)} ${summary}`)
  .join('\n')}

Options:
  --version  print the version
  --help     print this help; after a command, the help of the command

Examples:
  rankzero finetune --model ./llama --data train.jsonl --out ./tuned --nproc 2
  rankzero plan --model ./llama --nproc 8 --tp 2
  rankzero generate --model ./tuned --prompt "Define whale (n.)"
  rankzero run --nproc 2 train.mjs
`;

// A reader that has seen enough (`rankzero … | head`) ends the command as it ends any other; ranks end with their launcher.
for (const stream of [process.stdout, process.stderr]) {
  stream.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code !== 'EPIPE') throw error;
    process.exit(141); // 128 + SIGPIPE
  });
}

async function main([name, ...argv]: string[]): Promise<void> {
  if (name === '--version' || name === '-V') {
    console.log(packageVersion());
  } else if (name === undefined || name === '--help' || name === '-h' || name === 'help') {
    process.stdout.write(help);
    if (name === undefined) process.exitCode = 1;
  } else if (Object.hasOwn(commands, name)) {
    const run = await commands[name]!.load();
    process.exitCode = await run(argv);
  } else {
    const { nearest } = await import('../core/nearest.ts');
    const near = nearest(name, Object.keys(commands));
    const hint = near ? `Did you mean ${near}?` : `The commands are: ${Object.keys(commands).join(', ')}.`;
    console.error(`rankzero: no such command: ${name}. ${hint}`);
    process.exitCode = 2;
  }
}

main(process.argv.slice(2)).catch((error: unknown) => {
  console.error(`rankzero: ${describeError(error).replaceAll('\n', '\n  ')}`);
  process.exitCode = 1;
});
