// Models from files and back: byte-exact round trips, ties, bad input, generation equal to Transformers'.
import { cpSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { openCheckpoint } from '../../src/checkpoint/hf-files.ts';
import { loadSafetensors, saveSafetensors } from '../../src/checkpoint/tensors.ts';
import { AutoModelForCausalLM } from '../../src/models/auto.ts';
import { AutoConfig } from '../../src/models/config.ts';
import { sample } from '../../src/models/generate.ts';
import { native } from '../../src/native.ts';
import { initEmptyWeights } from '../../src/nn/init_empty_weights.ts';
import { Tensor } from '../../src/tensor/tensor.ts';
import { caseDir } from '../reference/cases.ts';
import { familyCases } from '../reference/family.ts';

const moby = fileURLToPath(new URL('../../examples/moby-llama', import.meta.url));
let dir: string;
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'rankzero-models-'));
});
afterEach(() => rmSync(dir, { recursive: true, force: true }));

async function rawTensors(from: string): Promise<Map<string, Buffer>> {
  const checkpoint = await openCheckpoint(from);
  const out = new Map<string, Buffer>();
  for (const [name, entry] of checkpoint.tensors) {
    out.set(name, Buffer.from(await native.fileReadBytes(entry.source.file, entry.byteOffset, entry.byteLength)));
  }
  checkpoint.close();
  return out;
}

describe('a load-save round trip', () => {
  it.each([moby, ...familyCases.map(caseDir)])('changes no byte of %s', async (from) => {
    const model = await AutoModelForCausalLM.fromPretrained(from);
    await model.savePretrained(join(dir, 'out'));
    const [before, after] = [await rawTensors(from), await rawTensors(join(dir, 'out'))];
    expect([...after.keys()].sort()).toEqual([...before.keys()].sort());
    for (const [name, bytes] of before) expect(after.get(name)!.equals(bytes), name).toBe(true);
    expect(JSON.parse(readFileSync(join(dir, 'out/config.json'), 'utf8'))).toEqual(
      JSON.parse(readFileSync(join(from, 'config.json'), 'utf8')),
    );
  });

  it('keeps bfloat16 bytes when loaded as float32', async () => {
    const model = await AutoModelForCausalLM.fromPretrained(moby, { dtype: 'float32' });
    await model.savePretrained(join(dir, 'out'));
    const [before, after] = [await rawTensors(moby), await rawTensors(join(dir, 'out'))];
    for (const [name, bytes] of before) expect(after.get(name)!.equals(bytes), name).toBe(true);
  });

  it('copies tokenizer, chat template and generation config', async () => {
    const model = await AutoModelForCausalLM.fromPretrained(moby);
    await model.savePretrained(join(dir, 'out'));
    for (const name of ['tokenizer.json', 'tokenizer_config.json', 'chat_template.jinja', 'generation_config.json']) {
      expect(existsSync(join(dir, 'out', name)), name).toBe(true);
    }
  });

  it.each(['config.json', 'model.safetensors.index.json', 'model-00002-of-00003.safetensors'])(
    'leaves nothing half-written where %s cannot be put in place',
    async (name) => {
      const out = join(dir, 'out');
      mkdirSync(join(out, name, 'in the way'), { recursive: true });
      const model = await AutoModelForCausalLM.fromPretrained(moby);
      await expect(model.savePretrained(out, { maxShardBytes: 1_500_000 })).rejects.toThrow(/EISDIR|ENOTEMPTY|EEXIST/);
      expect(readdirSync(out).filter((file) => file.endsWith('.tmp'))).toEqual([]);
    },
  );

  it('may save over the folder that it reads from', async () => {
    cpSync(caseDir('llama'), join(dir, 'model'), { recursive: true });
    const before = await rawTensors(join(dir, 'model'));
    const model = await AutoModelForCausalLM.fromPretrained(join(dir, 'model'));
    await model.savePretrained(join(dir, 'model'));
    for (const [name, bytes] of await rawTensors(join(dir, 'model')))
      expect(bytes.equals(before.get(name)!), name).toBe(true);
  });
});

describe('tied heads', () => {
  const rewrite = async (change: (tensors: Map<string, Tensor>) => void): Promise<string> => {
    cpSync(caseDir('llama3-rope-tied'), join(dir, 'model'), { recursive: true });
    const path = join(dir, 'model/model.safetensors');
    const tensors = await loadSafetensors(path);
    change(tensors);
    await saveSafetensors(path, tensors, { format: 'pt' });
    return join(dir, 'model');
  };
  const logits = async (from: string): Promise<Float32Array> => {
    const model = await AutoModelForCausalLM.fromPretrained(from);
    return (await model.forward({ inputIds: [[3, 4, 5, 6]] }).logits.data()) as Float32Array;
  };

  it('need only one side in the file, either', async () => {
    const want = await logits(caseDir('llama3-rope-tied'));
    const from = await rewrite((tensors) => {
      tensors.set('lm_head.weight', tensors.get('model.embed_tokens.weight')!);
      tensors.delete('model.embed_tokens.weight');
    });
    expect(await logits(from)).toEqual(want);
  });

  it('stay tied when both sides are equal, and are untied with a warning when they differ', async () => {
    const want = await logits(caseDir('llama3-rope-tied'));
    const warn = vi.spyOn(console, 'warn').mockImplementation(() => {});
    const same = await rewrite((tensors) => tensors.set('lm_head.weight', tensors.get('model.embed_tokens.weight')!));
    const tied = await AutoModelForCausalLM.fromPretrained(same);
    expect(tied.isTied).toBe(true);
    expect(warn).not.toHaveBeenCalled();
    const different = await rewrite((tensors) => {
      const head = tensors.get('model.embed_tokens.weight')!;
      tensors.set('lm_head.weight', Tensor.full(head.shape, 0.5));
    });
    const untied = await AutoModelForCausalLM.fromPretrained(different);
    expect(untied.isTied).toBe(false);
    expect(warn).toHaveBeenCalledOnce();
    expect(await logits(different)).not.toEqual(want);
    warn.mockRestore();
  });
});

describe('bad checkpoints', () => {
  it('names missing, unexpected and mis-shaped tensors in one error', async () => {
    cpSync(caseDir('llama'), join(dir, 'model'), { recursive: true });
    const path = join(dir, 'model/model.safetensors');
    const tensors = await loadSafetensors(path);
    tensors.delete('model.norm.weight');
    tensors.set('extra.weight', Tensor.from([1]));
    tensors.set('lm_head.weight', Tensor.zeros([2, 2]));
    await saveSafetensors(path, tensors);
    await expect(AutoModelForCausalLM.fromPretrained(join(dir, 'model'))).rejects.toThrow(
      /missing: model\.norm\.weight; unexpected: extra\.weight; wrong shape: lm_head\.weight is \[2,2\] but the config wants \[130,64\]/,
    );
  });

  it('refuses an unsupported family', async () => {
    cpSync(caseDir('llama'), join(dir, 'model'), { recursive: true });
    const config = JSON.parse(readFileSync(join(dir, 'model/config.json'), 'utf8'));
    writeFileSync(join(dir, 'model/config.json'), JSON.stringify({ ...config, model_type: 'bert' }));
    await expect(AutoModelForCausalLM.fromPretrained(join(dir, 'model'))).rejects.toThrow(
      /"bert" is not supported.*llama/,
    );
  });
});

describe('forward', () => {
  it('checks ids, labels and boundaries before anything is enqueued', async () => {
    const model = await AutoModelForCausalLM.fromPretrained(caseDir('llama'));
    expect(() => model.forward({ inputIds: [[3, 130]] })).toThrow('id 130 at index 1 is outside the vocabulary of 130');
    expect(() => model.forward({ inputIds: [[3], [4, 5]] })).toThrow('row 1 has 2 tokens but row 0 has 1');
    expect(() => model.forward({ inputIds: [[3, 4]], labels: [[3, 500]] })).toThrow('labels: 500 at index 1');
    expect(() => model.forward({ inputIds: [[3, 4]], cuSeqlens: [0, 1] })).toThrow(
      'cuSeqlens must rise from 0 to the 2 tokens',
    );
    expect(() => model.forward({ inputIds: [] })).toThrow('empty');
  });

  it('gives packed sequences the losses they have alone', async () => {
    const model = await AutoModelForCausalLM.fromPretrained(caseDir('llama'));
    const [a, b] = [
      [3, 9, 27, 81, 12],
      [5, 25, 125],
    ];
    const loss = (inputIds: number[][], cuSeqlens?: number[]): number =>
      model.forward({ inputIds, labels: inputIds, cuSeqlens, numItemsInBatch: 1 }).loss.item();
    const packed = loss([[...a, ...b]], [0, 5, 8]);
    expect(Math.abs(packed - loss([a]) - loss([b]))).toBeLessThan(1e-4);
  });

  it('throws on meta, naming the parameter; buffers are real', async () => {
    const config = await AutoConfig.fromPretrained(caseDir('llama'));
    const model = initEmptyWeights(() => AutoModelForCausalLM.fromConfig(config));
    expect([...model.parameters()].every((parameter) => parameter.device === 'meta')).toBe(true);
    expect([...model.namedBuffers()].map(([name, buffer]) => [name, buffer.device])).toEqual([
      ['model.inv_freq', 'cpu'],
    ]);
    expect(() => model.forward({ inputIds: [[3]] })).toThrow('model.embed_tokens.weight is on meta');
  });
});

describe('generate', () => {
  // Transformers 5.18, float32, greedy, for "Define sea (n.)" with the chat template
  const want = [
    2, 39, 1585, 513, 581, 799, 81, 17, 12, 3, 17, 799, 39, 88, 431, 72, 70, 313, 82, 1483, 453, 886, 321, 44, 44, 17,
    799, 54, 393, 899, 12, 1618, 36, 80, 80, 333, 508, 15, 289, 262,
  ];

  it('continues as Transformers does', async () => {
    const model = await AutoModelForCausalLM.fromPretrained(moby, { dtype: 'float32' });
    const seen: number[] = [];
    const got = await model.generate(want.slice(0, 10), { maxNewTokens: 30, onToken: (id) => seen.push(id) });
    expect(got).toEqual(want);
    expect(seen).toEqual(want.slice(10));
  });

  it('samples by seed, within the nucleus', async () => {
    const model = await AutoModelForCausalLM.fromPretrained(moby, { dtype: 'float32' });
    const draw = (seed: number): Promise<number[]> =>
      model.generate(want.slice(0, 10), { maxNewTokens: 8, temperature: 1, topP: 0.9, seed });
    expect(await draw(1)).toEqual(await draw(1));
    expect(await draw(1)).not.toEqual(await draw(2));
    const logits = Float32Array.from([0, Math.log(3), Math.log(6)]); // 0.1, 0.3, 0.6
    const counts = [0, 0, 0];
    for (let i = 0; i < 1000; i++) counts[sample(logits, 1, 0.8, i / 1000)]!++;
    expect(counts[0]).toBe(0);
    expect(counts[2]! / 1000).toBeCloseTo(2 / 3, 1);
    await expect(model.generate([], {})).rejects.toThrow('empty');
    await expect(model.generate([3], { topP: 0 })).rejects.toThrow('topP');
  });
});
