// Fine-tuning with an adapter, as a user does it: the adapter alone is saved, a stopped run goes on, and the result answers with and
// without the files that PEFT wants.
import { readdir, readFile, rm, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { expectFinetune, type FinetuneResult, finetune, relativeError, workFolder } from './finetune_helpers.ts';
import { runProcess } from './helpers.ts';

const model = join(import.meta.dirname, '../../examples/moby-llama');
const cli = join(import.meta.dirname, '../../dist/cli/main.js');
const options = { maxSteps: 6, batchSize: 2, lr: 4e-3, loraR: 4, loraAlpha: 8, saveTotalLimit: 4 };

let dir: string;
let whole: FinetuneResult;
const adapter = (out: string): Promise<Buffer> => readFile(join(dir, out, 'adapter_model.safetensors'));
const sizeOf = async (folder: string): Promise<number> => {
  const sizes = (await readdir(folder)).map(async (name) => (await stat(join(folder, name))).size);
  return (await Promise.all(sizes)).reduce((sum, size) => sum + size, 0);
};

beforeAll(async () => {
  dir = await workFolder(22);
  const evalData = join(dir, 'eval.jsonl');
  whole = await expectFinetune(2, dir, { ...options, saveSteps: 2, out: 'whole', evalData, evalAtStart: true });
});
afterAll(() => rm(dir, { recursive: true }));

test('an adapter is trained, and saved alone', async () => {
  const { parameters, trainableParameters } = whole.start!;
  expect(trainableParameters).toBeLessThan(parameters / 10);
  expect(whole.evals.at(-1)!.loss).toBeLessThan(whole.evals[0]!.loss - 0.1);
  const names = await readdir(join(dir, 'whole'));
  expect(names).toEqual(expect.arrayContaining(['adapter_config.json', 'adapter_model.safetensors', 'tokenizer.json']));
  expect(names).not.toContain('model.safetensors');
  // Float32, and a header.
  expect((await adapter('whole')).length).toBeLessThan(4 * trainableParameters + 16_384);
});

test('a checkpoint holds the adapter and its optimizer', async () => {
  expect(whole.checkpoints.map(({ step }) => step)).toEqual([2, 4, 6]);
  const size = await sizeOf(join(dir, 'whole/checkpoint-4'));
  expect(size).toBeGreaterThan(12 * whole.start!.trainableParameters);
  expect(size).toBeLessThan(12 * whole.start!.trainableParameters + 200_000); // headers: pieces of many small tensors
});

test('resuming is bit-exact on as many ranks', async () => {
  const rest = await expectFinetune(2, dir, { ...options, resume: join(dir, 'whole/checkpoint-4'), out: 'rest' });
  expect(rest.losses).toEqual(whole.losses.slice(4));
  expect((await adapter('rest')).equals(await adapter('whole'))).toBe(true);
});

test.each([
  { nproc: 1, batchSize: 4 },
  { nproc: 4, batchSize: 2, tp: 2 },
])('resuming on $nproc ranks', async (layout) => {
  const resume = join(dir, 'whole/checkpoint-4');
  const rest = await expectFinetune(layout.nproc, dir, { ...options, ...layout, resume, out: `rest-${layout.nproc}` });
  expect(relativeError(rest.losses, whole.losses.slice(4))).toBeLessThan(1e-6);
});

test('an adapter is trained on, in bfloat16 too', async () => {
  const { loraR: _, loraAlpha: __, ...rest } = options;
  const more = await expectFinetune(2, dir, {
    ...rest,
    adapter: join(dir, 'whole'),
    precision: 'bfloat16',
    out: 'more',
    evalData: join(dir, 'eval.jsonl'),
    evalAtStart: true,
  });
  expect(Math.abs(more.evals[0]!.loss / whole.evals.at(-1)!.loss - 1)).toBeLessThan(1e-2);
  expect(more.losses.at(-1)!).toBeLessThan(whole.losses[0]!);
});

test('an adapter is trained on a base of 4 bits, the same however it is divided', async () => {
  const quantized = { ...options, quantize: 'nf4' as const };
  const two = await expectFinetune(2, dir, { ...quantized, out: 'four', saveSteps: 3 });
  expect(two.losses.at(-1)!).toBeLessThan(two.losses[0]! - 0.3);
  // Near the base that it stands for, and not that base.
  expect(Math.abs(two.losses[0]! / whole.losses[0]! - 1)).toBeLessThan(2e-2);
  expect(two.losses[0]).not.toBe(whole.losses[0]);
  const layouts = [
    { nproc: 1, batchSize: 4 },
    { nproc: 4, batchSize: 2, tp: 2 },
  ];
  for (const layout of layouts) {
    const other = await expectFinetune(layout.nproc, dir, { ...quantized, ...layout, out: `four-${layout.nproc}` });
    expect(relativeError(other.losses, two.losses)).toBeLessThan(1e-6);
  }
  const rest = await expectFinetune(2, dir, { ...quantized, resume: join(dir, 'four/checkpoint-3'), out: 'four-rest' });
  expect(rest.losses).toEqual(two.losses.slice(3));
  expect((await adapter('four-rest')).equals(await adapter('four'))).toBe(true);
  const { loraR: _, loraAlpha: __, ...full } = quantized;
  const { code, stderr } = await finetune(1, dir, { ...full, out: 'no' });
  expect(code).not.toBe(0);
  expect(stderr.join()).toMatch(/quantize: a quantised base is frozen.*train an adapter/);
});

test('a checkpoint of an adapter is refused where the whole model is trained, and the other way round', async () => {
  const { loraR: _, loraAlpha: __, ...full } = options;
  const { code, stderr } = await finetune(2, dir, { ...full, resume: join(dir, 'whole/checkpoint-4'), out: 'no' });
  expect(code).not.toBe(0);
  expect(stderr.join()).toMatch(/checkpoint of another model.*missing: .*embed_tokens/);
});

test('generate answers with the adapter as the merged model does without', async () => {
  const prompt = ['--prompt', 'Define whale (n.)', '--max-new-tokens', '12', '--device', 'cpu'];
  const merged = join(dir, 'merged');
  const done = await runProcess([cli, 'convert', model, merged, '--merge-adapter', join(dir, 'whole')], {});
  expect(done.code, done.stderr).toBe(0);
  const base = await runProcess([cli, 'generate', '--model', model, ...prompt], {});
  const own = await runProcess([cli, 'generate', '--model', model, '--adapter', join(dir, 'whole'), ...prompt], {});
  const alone = await runProcess([cli, 'generate', '--model', merged, ...prompt], {});
  expect(own.stdout).toBe(alone.stdout);
  expect(own.stdout).not.toBe(base.stdout);
});
