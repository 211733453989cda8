// Adapters against PEFT: files that it wrote give its logits, loss, gradients and ten steps of AdamW.
import { readFileSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { loadAdapter, saveAdapter } from '../../src/adapt/files.ts';
import { disableAdapter } from '../../src/adapt/lora.ts';
import { mergeAdapter, unmergeAdapter } from '../../src/adapt/merge.ts';
import { loadSafetensors } from '../../src/checkpoint/tensors.ts';
import { AutoModelForCausalLM } from '../../src/models/auto.ts';
import type { CausalLM } from '../../src/models/causal_lm.ts';
import { NONE, native } from '../../src/native.ts';
import { AdamW } from '../../src/optim/adamw.ts';
import { noGrad } from '../../src/tensor/grad_mode.ts';
import type { Tensor } from '../../src/tensor/tensor.ts';
import { caseDir, maxError, referenceTensors, relativeError, trainingRun, values } from './cases.ts';

const cases = ['lora-llama', 'lora-llama-patterns', 'lora-llama-dora', 'lora-gpt-neox', 'lora-mixtral'] as const;

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'rankzero-adapters-'));
});
afterAll(() => rm(folder, { recursive: true }));

const adapted = async (name: string): Promise<CausalLM> => {
  const model = await AutoModelForCausalLM.fromPretrained(caseDir(name));
  return loadAdapter(model, join(caseDir(name), 'adapter'), { trainable: true });
};

/** The key in the adapter's file of a trained parameter. */
function keyOf(name: string): string {
  return `base_model.model.${name.replace('.default', '').replace('magnitude_vector.weight', 'magnitude_vector')}`;
}

describe.each(cases)('%s', (name) => {
  let model: CausalLM;
  let reference: Map<string, Tensor>;
  const logits = async (): Promise<Float32Array> =>
    values(noGrad(() => model.forward({ inputIds: reference.get('input_ids')! })).logits);
  const error = async (key: string): Promise<number> => maxError(await logits(), await values(reference.get(key)!));

  beforeAll(async () => {
    model = await adapted(name);
    reference = await referenceTensors(name);
  });

  it('gives the logits of PEFT, and those of the base while it is disabled', async () => {
    expect(await error('logits')).toBeLessThan(1e-5);
    expect(await error('base_logits')).toBeGreaterThan(1e-2);
    if (name === 'lora-llama-patterns') expect(() => disableAdapter(model, () => 0)).toThrow('lm_head.weight');
    else expect(await disableAdapter(model, () => error('base_logits'))).toBeLessThan(1e-5);
    expect(await error('logits')).toBeLessThan(1e-5);
  });

  it('gives its loss, gradients and ten steps of AdamW', async () => {
    const [inputIds, labels] = [reference.get('input_ids')!, reference.get('labels')!];
    const run = trainingRun(name);
    const { lr, betas, eps, weight_decay: weightDecay } = run;
    model.forward({ inputIds, labels }).loss.backward();
    const trained = [...model.namedParameters()].filter(([, { requiresGrad }]) => requiresGrad);
    const wanted = [...reference.keys()].filter((key) => key.startsWith('grad.'));
    expect(trained.map(([path]) => `grad.${keyOf(path)}`).sort()).toEqual(wanted.sort());
    for (const [path, { grad }] of trained) {
      const want = await values(reference.get(`grad.${keyOf(path)}`)!);
      expect(relativeError(await values(grad!), want), path).toBeLessThan(2e-5);
    }
    for (const [path, parameter] of model.namedParameters())
      if (!parameter.requiresGrad) expect(parameter.grad, path).toBeUndefined();
    model.zeroGrad();
    const optimizer = new AdamW(model.namedParameters(), { lr, betas, eps, weightDecay });
    for (const want of run.losses) {
      const { loss } = model.forward({ inputIds, labels });
      loss.backward();
      expect(Math.abs(loss.item() / want - 1)).toBeLessThan(1e-5);
      clip(
        trained.map(([, parameter]) => parameter.grad!),
        run.max_grad_norm,
      );
      optimizer.step();
      optimizer.zeroGrad();
    }
  });

  it('merges into what PEFT merged, saves it, and takes it out again', async () => {
    const lazy = await adapted(name);
    expect(() => unmergeAdapter(lazy)).toThrow('no adapter is merged');
    await expect(lazy.savePretrained(join(folder, 'unmerged'))).rejects.toThrow('mergeAdapter');
    mergeAdapter(lazy);
    await lazy.savePretrained(join(folder, `${name}-merged`));
    const [own, theirs] = await Promise.all([
      loadSafetensors(join(folder, `${name}-merged`, 'model.safetensors')),
      loadSafetensors(join(caseDir(name), 'merged.safetensors')),
    ]);
    const known = [...own.keys()].filter((key) => theirs.has(key));
    expect(known.length).toBeGreaterThan(theirs.size / 2); // experts are stored in two ways
    for (const key of known)
      expect(maxError(await values(own.get(key)!), await values(theirs.get(key)!)), key).toBeLessThan(1e-6);
    const again = await AutoModelForCausalLM.fromPretrained(join(folder, `${name}-merged`));
    const run = async (of: CausalLM): Promise<Float32Array> =>
      values(noGrad(() => of.forward({ inputIds: reference.get('input_ids')! })).logits);
    const want = await values(reference.get('merged_logits')!);
    for (const of of [lazy, again]) expect(maxError(await run(of), want)).toBeLessThan(1e-5);
    unmergeAdapter(lazy);
    expect(maxError(await run(lazy), await values(reference.get('logits')!))).toBeLessThan(1e-5);

    const real = await adapted(name);
    const fresh = await run(real); // reads the weights
    mergeAdapter(real);
    expect(() => mergeAdapter(real)).toThrow('merged already');
    expect(maxError(await run(real), want)).toBeLessThan(1e-5);
    if (name === 'lora-llama-dora') expect(() => unmergeAdapter(real)).toThrow('load the model again');
    else {
      unmergeAdapter(real);
      expect(maxError(await run(real), fresh)).toBeLessThan(1e-5);
    }
  });

  it('writes the file that PEFT wrote', async () => {
    const fresh = await adapted(name);
    await saveAdapter(fresh, join(folder, name));
    const [own, theirs] = await Promise.all(
      [join(folder, name), join(caseDir(name), 'adapter')].map((dir) =>
        loadSafetensors(join(dir, 'adapter_model.safetensors')),
      ),
    );
    expect([...own!.keys()].sort()).toEqual([...theirs!.keys()].sort());
    for (const [key, tensor] of theirs!) expect(own!.get(key)!.dataSync(), key).toEqual(tensor.dataSync());
    const config = (dir: string) => JSON.parse(readFileSync(join(dir, 'adapter_config.json'), 'utf8'));
    const { base_model_name_or_path: base, ...rest } = config(join(folder, name));
    expect(base).toBe(caseDir(name));
    const { target_parameters: none, ...want } = config(join(caseDir(name), 'adapter'));
    expect(none ?? []).toEqual([]);
    expect({ base_model_name_or_path: null, ...rest }).toEqual({ target_parameters: null, ...want });
  });
});

/** As torch.nn.utils.clip_grad_norm_. */
function clip(grads: readonly Tensor[], maxNorm: number): void {
  const all = grads.map((grad) => grad.dataSync() as Float32Array);
  const norm = Math.sqrt(all.reduce((sum, data) => sum + data.reduce((s, x) => s + x * x, 0), 0));
  const factor = Math.min(1, maxNorm / (norm + 1e-6));
  for (const grad of grads) native.scale(grad.handle, grad.handle, NONE, factor, false);
}
