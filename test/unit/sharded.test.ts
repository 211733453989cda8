// Sharded checkpoints from a program's side, in a world of one: what comes back, and what is refused.
import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeAll, beforeEach, expect, test } from 'vitest';
import { loadShardedCheckpoint, saveShardedCheckpoint } from '../../src/checkpoint/sharded.ts';
import { dist } from '../../src/distributed/index.ts';
import { AutoModelForCausalLM } from '../../src/models/auto.ts';
import type { CausalLM } from '../../src/models/causal_lm.ts';
import { native } from '../../src/native.ts';
import type { Module } from '../../src/nn/module.ts';
import { AdamW } from '../../src/optim/adamw.ts';
import { SGD } from '../../src/optim/sgd.ts';
import { FullyShardedDataParallel as FSDP } from '../../src/parallel/fsdp/fsdp.ts';
import { Tensor } from '../../src/tensor/tensor.ts';
import { caseDir } from '../reference/cases.ts';

let dir: string;
beforeAll(() => dist.initProcessGroup({ quiet: true }));
beforeEach(async () => {
  dir = await mkdtemp(join(tmpdir(), 'sharded-'));
});
afterEach(() => rm(dir, { recursive: true, force: true }));

interface Setup {
  fsdp: FSDP<CausalLM>;
  optimizer: AdamW;
  step(): Promise<number>;
}

const inputIds = [Array.from({ length: 20 }, (_, i) => (i * 7) % 130)];

async function setup(name = 'llama', prepare: (model: CausalLM) => readonly Module[] = () => []): Promise<Setup> {
  const model = await AutoModelForCausalLM.fromPretrained(caseDir(name));
  const ignoredModules = prepare(model);
  const fsdp = new FSDP(model, { ignoredModules });
  const optimizer = new AdamW(fsdp.namedParameters(), { lr: 1e-2 });
  const step = async (): Promise<number> => {
    const { loss } = fsdp.forward({ inputIds, labels: inputIds });
    loss.backward();
    optimizer.step();
    fsdp.zeroGrad();
    optimizer.zeroGrad();
    return Number((await loss.data())[0]);
  };
  return { fsdp, optimizer, step };
}

const cases: [string, string, ((model: CausalLM) => readonly Module[])?][] = [
  ['a plain model', 'llama'],
  ['tied weights and scaled positions', 'llama3-rope-tied'],
  ['biases', 'llama-bias'],
  ['an ignored module', 'llama', (model) => [model.outputHead]],
  [
    'frozen parameters',
    'llama',
    (model) => {
      model.inputEmbedding.requiresGrad_(false);
      for (const [name, parameter] of model.namedParameters())
        if (name.includes('layers.0')) parameter.requiresGrad = false;
      return [];
    },
  ],
  [
    'a persistent buffer',
    'llama',
    (model) => {
      model.registerBuffer('counts', Tensor.from([1, 2, 3]));
      return [];
    },
  ],
];

test.each(cases)('training goes on bit for bit: %s', async (_, name, prepare) => {
  const first = await setup(name, prepare);
  for (let i = 0; i < 3; i++) await first.step();
  await saveShardedCheckpoint(join(dir, 'c'), first.fsdp, first.optimizer, { mine: [1, 2] });
  const expected = [await first.step(), await first.step()];
  const second = await setup(name, prepare);
  expect(await loadShardedCheckpoint(join(dir, 'c'), second.fsdp, second.optimizer)).toEqual({ mine: [1, 2] });
  expect([await second.step(), await second.step()]).toEqual(expected);
});

test('values of a persistent buffer come back', async () => {
  const withBuffer = (value: number) =>
    setup('llama', (model) => {
      model.registerBuffer('counts', Tensor.full([3], value));
      return [];
    });
  await saveShardedCheckpoint(join(dir, 'c'), (await withBuffer(5)).fsdp, undefined, {});
  const { fsdp } = await withBuffer(0);
  await loadShardedCheckpoint(join(dir, 'c'), fsdp);
  const [, buffer] = [...fsdp.namedBuffers()].find(([name]) => name === 'counts')!;
  expect(await buffer.data()).toEqual(Float32Array.of(5, 5, 5));
});

test('the state of another optimizer is refused, with both names', async () => {
  const { fsdp, optimizer, step } = await setup();
  await step();
  const sgd = new SGD(fsdp.namedParameters(), { momentum: 0.9 });
  await saveShardedCheckpoint(join(dir, 'adamw'), fsdp, optimizer, {});
  await expect(loadShardedCheckpoint(join(dir, 'adamw'), fsdp, sgd)).rejects.toThrow(
    /\/adamw: its optimizer state is that of AdamW, and this run has SGD/,
  );
  await saveShardedCheckpoint(join(dir, 'sgd'), fsdp, sgd, {});
  await expect(loadShardedCheckpoint(join(dir, 'sgd'), fsdp, optimizer)).rejects.toThrow(
    /\/sgd: its optimizer state is that of SGD, and this run has AdamW/,
  );
  await loadShardedCheckpoint(join(dir, 'sgd'), fsdp); // the weights alone
  // A checkpoint that does not say whose state it has is AdamW's.
  const path = join(dir, 'adamw/state.json');
  await writeFile(path, (await readFile(path, 'utf8')).replace('"optimizer":"AdamW",', ''));
  await loadShardedCheckpoint(join(dir, 'adamw'), fsdp, optimizer);
  await expect(loadShardedCheckpoint(join(dir, 'adamw'), fsdp, sgd)).rejects.toThrow(/is that of AdamW/);
});

test('without optimizer state a fresh optimizer stays fresh', async () => {
  const { fsdp, step } = await setup();
  const loss = await step();
  const fresh = await setup();
  await saveShardedCheckpoint(join(dir, 'c'), fresh.fsdp, fresh.optimizer, {});
  const other = await setup();
  await loadShardedCheckpoint(join(dir, 'c'), other.fsdp, other.optimizer);
  expect(await other.step()).toBe(loss);
  expect(fsdp.units.length).toBe(other.fsdp.units.length);
});

test('an older checkpoint of the same name is replaced, and nothing is left beside it', async () => {
  const { fsdp, optimizer, step } = await setup();
  await saveShardedCheckpoint(join(dir, 'c'), fsdp, optimizer, { save: 1 });
  await step();
  await saveShardedCheckpoint(join(dir, 'c'), fsdp, optimizer, { save: 2 });
  expect(await readdir(dir)).toEqual(['c']);
  expect(await loadShardedCheckpoint(join(dir, 'c'), fsdp, optimizer)).toEqual({ save: 2 });
});

test('progress ends at the total', async () => {
  const { fsdp, optimizer } = await setup();
  await saveShardedCheckpoint(join(dir, 'c'), fsdp, optimizer, {});
  const seen: number[] = [];
  await loadShardedCheckpoint(join(dir, 'c'), fsdp, optimizer, {
    onProgress: ({ bytes, totalBytes }) => seen.push(bytes / totalBytes),
  });
  expect(seen.at(-1)).toBe(1);
  expect(seen).toEqual([...seen].sort((a, b) => a - b));
});

test('a checkpoint of another model is refused, with the names', async () => {
  const { fsdp, optimizer } = await setup('llama-bias');
  await saveShardedCheckpoint(join(dir, 'c'), fsdp, optimizer, {});
  const other = await setup('llama');
  await expect(loadShardedCheckpoint(join(dir, 'c'), other.fsdp, other.optimizer)).rejects.toThrow(
    /\/c is a checkpoint of another model; .*(unexpected: .*bias|wrong shape: )/,
  );
});

test('a file of another save is refused', async () => {
  const { fsdp, optimizer } = await setup();
  await saveShardedCheckpoint(join(dir, 'a'), fsdp, optimizer, {});
  await saveShardedCheckpoint(join(dir, 'b'), fsdp, optimizer, {});
  const file = 'rank-00000-of-00001.safetensors';
  await writeFile(join(dir, 'b', file), await readFile(join(dir, 'a', file)));
  await expect(loadShardedCheckpoint(join(dir, 'b'), fsdp, optimizer)).rejects.toThrow(
    /\/b: .*belongs to another save/,
  );
});

test('a Hugging Face folder is not a training checkpoint', async () => {
  const { fsdp } = await setup();
  await fsdp.savePretrained(dir);
  await expect(loadShardedCheckpoint(dir, fsdp)).rejects.toThrow(/not a complete checkpoint: it has no state\.json/);
});

test('a newer format is refused', async () => {
  const { fsdp } = await setup();
  await saveShardedCheckpoint(join(dir, 'c'), fsdp, undefined, {});
  const path = join(dir, 'c/state.json');
  await writeFile(path, (await readFile(path, 'utf8')).replace('"version":1', '"version":2'));
  await expect(loadShardedCheckpoint(join(dir, 'c'), fsdp)).rejects.toThrow(/version 2 of the format is not known/);
});

test('a disk that fills up is an error of that save alone', async () => {
  const { fsdp, optimizer, step } = await setup();
  await saveShardedCheckpoint(join(dir, 'c'), fsdp, optimizer, { save: 1 });
  const { fileCreate } = native;
  native.fileCreate = (_path, reserve) => fileCreate('/dev/full', reserve);
  try {
    await expect(saveShardedCheckpoint(join(dir, 'c'), fsdp, optimizer, {})).rejects.toThrow(
      /saving .*\/c failed: .*No space left/,
    );
    await expect(fsdp.savePretrained(join(dir, 'hf'))).rejects.toThrow(/saving .*hf failed: .*No space left/);
  } finally {
    native.fileCreate = fileCreate;
  }
  expect((await readdir(dir)).filter((name) => name.startsWith('c'))).toEqual(['c']);
  expect(await step()).toBeGreaterThan(0); // and the program can go on
  expect(await loadShardedCheckpoint(join(dir, 'c'), fsdp, optimizer)).toEqual({ save: 1 });
});
