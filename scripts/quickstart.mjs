// `npm run quickstart`: set-up, then the main job as a user would start it. Two ranks fine-tune a 3M-parameter Llama,
// written after Moby Dick, on The Devil's Dictionary: rank 0 loads the model, rank 1 starts on the meta device.
import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { setup } from './setup.mjs';

await setup();

const command = [
  'finetune',
  ['--model', 'examples/moby-llama'],
  ['--data', 'examples/data/devils-dictionary.train.jsonl'],
  ['--eval-data', 'examples/data/devils-dictionary.eval.jsonl'],
  ['--out', 'out/quickstart'],
  ['--nproc', '2', '--epochs', '3', '--batch-size', '8'],
  ['--lr', '6e-4', '--schedule', 'linear', '--weight-decay', '0.1'],
  ['--sample-prompt', 'Define comfort (n.)'],
];
const quote = (word) => (/[^\w./-]/.test(word) ? `'${word}'` : word);
console.log(`$ rankzero ${command.map((part) => [part].flat().map(quote).join(' ')).join(' \\\n    ')}\n`);
const { status } = spawnSync(process.execPath, ['dist/cli/main.js', ...command.flat(), ...process.argv.slice(2)], {
  cwd: join(import.meta.dirname, '..'),
  stdio: 'inherit',
});
process.exitCode = status ?? 1;
