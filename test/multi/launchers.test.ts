// `rankzero finetune` as launchers of other programs start it: once on each host, or once for each rank; here all on this machine.
import { type ChildProcess, spawn } from 'node:child_process';
import { readdir, readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { workFolder } from './finetune_helpers.ts';
import { cleanEnvironment } from './helpers.ts';

const root = join(import.meta.dirname, '../..');
let dir: string;

beforeAll(async () => {
  dir = await workFolder(22);
});
afterAll(() => rm(dir, { recursive: true }));

interface Command {
  child: ChildProcess;
  text(): string;
  code: Promise<number | null>;
}

function finetune(out: string, argv: readonly string[], env: Record<string, string>): Command {
  const options = ['--model', 'examples/moby-llama', '--data', join(dir, 'train.jsonl'), '--out', join(dir, out)];
  const more = ['--device', 'cpu', '--batch-size', '2', '--no-eval-at-start', ...argv];
  const child = spawn(process.execPath, ['dist/cli/main.js', 'finetune', ...options, ...more], {
    cwd: root,
    env: cleanEnvironment(env),
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  let all = '';
  for (const stream of [child.stdout, child.stderr])
    stream.setEncoding('utf8').on('data', (text: string) => {
      all += text;
    });
  const timer = setTimeout(() => child.kill('SIGKILL'), 100_000);
  const code = new Promise<number | null>((resolve) => {
    child.once('close', (code) => {
      clearTimeout(timer);
      resolve(code);
    });
  });
  return { child, text: () => all, code };
}

/** Steps that rank 0 has written down. */
async function stepsOf(out: string): Promise<number> {
  const text = await readFile(join(dir, out, 'metrics.jsonl'), 'utf8').catch(() => '');
  return text.split('\n').filter((line) => line.includes('"loss"')).length;
}

async function waitForStep(out: string, commands: readonly Command[]): Promise<void> {
  let ended = false;
  void Promise.race(commands.map(({ code }) => code)).then(() => {
    ended = true;
  });
  while ((await stepsOf(out)) < 2) {
    if (ended) throw new Error(commands.map((command) => command.text()).join('\n'));
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

const port = 29620;

function nodeCommand(out: string, node: number, argv: readonly string[], offset: number): Command {
  const place = ['--nnodes', '2', '--node-rank', `${node}`, '--master-address', `127.0.0.1:${port + offset}`];
  return finetune(out, [...place, '--nproc', '1', ...argv], { RANKZERO_SECRET: 'of this test' });
}

/** As torchrun, or a script, would start it. */
function rankCommand(out: string, rank: number, argv: readonly string[], offset: number): Command {
  const place = { RANK: `${rank}`, LOCAL_RANK: `${rank}`, WORLD_SIZE: '2', LOCAL_WORLD_SIZE: '2' };
  const master = { MASTER_ADDR: '127.0.0.1', MASTER_PORT: `${port + offset}` };
  return finetune(out, argv, { ...place, ...master, RANKZERO_SECRET: 'of this test' });
}

test.each([
  ['launchers', nodeCommand, 0],
  ['ranks', rankCommand, 2],
] as const)('two %s are one job', async (out, start, offset) => {
  const commands = [0, 1].map((i) => start(out, i, ['--max-steps', '2'], offset));
  expect(await Promise.all(commands.map(({ code }) => code)), commands.map((c) => c.text()).join('\n')).toEqual([0, 0]);
  expect(commands[0]!.text()).toMatch(/2 ranks/);
  expect(await readdir(join(dir, out))).toContain('model.safetensors');
  expect(await stepsOf(out)).toBe(2);
});

test('what node 0 finds wrong ends the other launchers too, and is said there', async () => {
  const commands = [0, 1].map((i) => nodeCommand('wrong', i, ['--eval-data', 'none.jsonl'], 8));
  expect(await Promise.all(commands.map(({ code }) => code))).toEqual([1, 1]);
  expect(commands[0]!.text()).toContain('--eval-data: no such file: none.jsonl');
  expect(commands[1]!.text()).toMatch(/node 0 \(.*\) failed: --eval-data: no such file: none\.jsonl/);
});

test.each([
  ['term-launchers', nodeCommand, 4],
  ['term-ranks', rankCommand, 6],
] as const)('SIGTERM at one of two: all agree on a step, save, and end with 143 (%s)', async (out, start, offset) => {
  const long = ['--max-steps', '500', '--epochs', '200'];
  const commands = [0, 1].map((i) => start(out, i, long, offset));
  await waitForStep(out, commands);
  commands[1]!.child.kill('SIGTERM');
  const texts = () => commands.map((command) => command.text()).join('\n');
  expect(await Promise.all(commands.map(({ code }) => code)), texts()).toEqual([143, 143]);
  expect(texts()).not.toContain('failed');
  const steps = await stepsOf(out);
  expect(steps).toBeLessThan(400);
  expect((await readdir(join(dir, out))).filter((name) => name.startsWith('checkpoint'))).toEqual([
    `checkpoint-${steps}`,
  ]);
  const rest = [0, 1].map((i) => start(out, i, ['--max-steps', `${steps + 1}`, '--epochs', '200', '--resume'], offset));
  expect(await Promise.all(rest.map(({ code }) => code)), rest.map((c) => c.text()).join('\n')).toEqual([0, 0]);
});
