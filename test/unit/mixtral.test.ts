// Mixtral beside its numbers (test/reference): both layouts of its checkpoints, the auxiliary loss, slices of experts, what
// may be frozen, what a graph keeps, and what may be wrapped.
import { cpSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { routerBalance } from '../../src/autograd/functions/moe.ts';
import { loadSafetensors, saveSafetensors } from '../../src/checkpoint/tensors.ts';
import { AutoModelForCausalLM } from '../../src/models/auto.ts';
import type { CausalLM } from '../../src/models/causal_lm.ts';
import { AutoConfig } from '../../src/models/config.ts';
import { type MixtralDecoderLayer, MixtralForCausalLM, MixtralSparseMoeBlock } from '../../src/models/mixtral.ts';
import type { MixtralConfig } from '../../src/models/mixtral-config.ts';
import type { Parameter } from '../../src/nn/parameter.ts';
import { applyActivationCheckpointing } from '../../src/parallel/checkpointing.ts';
import { planUnits } from '../../src/parallel/fsdp/units.ts';
import { moduleListPolicy, sizeBasedAutoWrapPolicy } from '../../src/parallel/fsdp/wrap_policy.ts';
import { memoryStats } from '../../src/tensor/memory.ts';
import { manualSeed } from '../../src/tensor/random.ts';
import { scope } from '../../src/tensor/scope.ts';
import { Tensor } from '../../src/tensor/tensor.ts';
import { caseDir, relativeError, values } from '../reference/cases.ts';

const usual = caseDir('mixtral');
const ids = [Array.from({ length: 40 }, (_, i) => 3 + ((i * 37) % 120))];

let dir: string;
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'rankzero-mixtral-'));
});
afterEach(() => rmSync(dir, { recursive: true, force: true }));

const configWith = (json: object): MixtralConfig =>
  AutoConfig.fromObject({
    ...JSON.parse(readFileSync(join(usual, 'config.json'), 'utf8')),
    ...json,
  }) as MixtralConfig;

/** Fresh weights, the same for every call. */
function fresh(json: object): CausalLM {
  manualSeed(7);
  return AutoModelForCausalLM.fromConfig(configWith(json));
}

const gradients = (model: CausalLM): Map<string, Float32Array> =>
  new Map([...model.namedParameters()].map(([name, { grad }]) => [name, grad!.dataSync() as Float32Array]));

describe('the fused layout', () => {
  /** The usual checkpoint with the experts of each layer in two tensors. */
  async function fuse(change: (tensors: Map<string, Tensor>) => void = () => {}): Promise<string> {
    const to = join(dir, 'fused');
    cpSync(usual, to, { recursive: true });
    const tensors = await loadSafetensors(join(usual, 'model.safetensors'));
    const join3 = (parts: Tensor[], shape: number[]): Tensor =>
      Tensor.from(
        parts.flatMap((part) => [...(part.dataSync() as Float32Array)]),
        shape,
      );
    for (const layer of [0, 1]) {
      const take = (name: string): Tensor => {
        const key = `model.layers.${layer}.block_sparse_moe.${name}.weight`;
        const tensor = tensors.get(key)!;
        tensors.delete(key);
        return tensor;
      };
      const experts = [0, 1, 2, 3].map((e) => ['w1', 'w3', 'w2'].map((w) => take(`experts.${e}.${w}`)));
      const mlp = `model.layers.${layer}.mlp`;
      tensors.set(
        `${mlp}.experts.gate_up_proj`,
        join3(
          experts.flatMap(([w1, w3]) => [w1!, w3!]),
          [4, 192, 64],
        ),
      );
      tensors.set(
        `${mlp}.experts.down_proj`,
        join3(
          experts.map(([, , w2]) => w2!),
          [4, 64, 96],
        ),
      );
      tensors.set(`${mlp}.gate.weight`, take('gate'));
    }
    change(tensors);
    await saveSafetensors(join(to, 'model.safetensors'), tensors, { format: 'pt' });
    return to;
  }

  it('gives the same parameters, and is saved in the usual one', async () => {
    const [want, got] = [
      await AutoModelForCausalLM.fromPretrained(usual),
      await AutoModelForCausalLM.fromPretrained(await fuse()),
    ];
    const parameters = new Map(got.namedParameters());
    for (const [name, parameter] of want.namedParameters())
      expect(await values(parameters.get(name)!), name).toEqual(await values(parameter));
    await got.savePretrained(join(dir, 'saved'));
    const [before, after] = [
      await loadSafetensors(join(usual, 'model.safetensors')),
      await loadSafetensors(join(dir, 'saved/model.safetensors')),
    ];
    expect([...after.keys()].sort()).toEqual([...before.keys()].sort());
    for (const [name, tensor] of before) expect(await values(after.get(name)!), name).toEqual(await values(tensor));
  });

  it('names what is missing, left over and mis-shaped', async () => {
    const missing = await fuse((tensors) => tensors.delete('model.layers.1.mlp.experts.down_proj'));
    await expect(AutoModelForCausalLM.fromPretrained(missing)).rejects.toThrow(
      /missing: model\.layers\.1\.block_sparse_moe\.experts\.0\.w2\.weight, .*experts\.3\.w2\.weight$/,
    );
    const misshaped = await fuse((tensors) =>
      tensors.set('model.layers.0.mlp.experts.gate_up_proj', Tensor.zeros([4, 96, 64])),
    );
    await expect(AutoModelForCausalLM.fromPretrained(misshaped)).rejects.toThrow(
      /wrong shape: model\.layers\.0\.mlp\.experts\.gate_up_proj is \[4,96,64\] but the config wants \[4,192,64\]$/,
    );
    const both = await fuse((tensors) =>
      tensors.set('model.layers.0.block_sparse_moe.gate.weight', Tensor.zeros([4, 64])),
    );
    await expect(AutoModelForCausalLM.fromPretrained(both)).rejects.toThrow(
      /unexpected: model\.layers\.0\.mlp\.gate\.weight$/,
    );
  });
});

describe('the auxiliary loss', () => {
  const loss = (json: object, numItemsInBatch?: number): number =>
    fresh(json).forward({ inputIds: ids, labels: ids, numItemsInBatch }).loss.item();

  it('is added by its coefficient when the config asks for it, whatever the loss is divided by', () => {
    const plain = loss({ output_router_logits: false });
    const one = loss({ router_aux_loss_coef: 0.5 }) - plain;
    // Perfect balance gives top_k: the loss is at least near it.
    expect(one / 0.5).toBeGreaterThan(1.9);
    expect(Math.abs((loss({ router_aux_loss_coef: 1 }) - plain) / one - 2)).toBeLessThan(1e-5);
    const half = loss({ router_aux_loss_coef: 0.5 }, 78) - loss({ output_router_logits: false }, 78);
    expect(Math.abs(half / one - 1)).toBeLessThan(1e-5);
  });

  it.each(['float32', 'bfloat16'] as const)(
    'and all else have the same bits under activation checkpointing in %s',
    (dtype) => {
      const run = (checkpointed: boolean): [number, Map<string, Float32Array>] => {
        manualSeed(7);
        const model = AutoModelForCausalLM.fromConfig(configWith({ router_aux_loss_coef: 0.1 }), { dtype });
        if (checkpointed) expect(applyActivationCheckpointing(model)).toBe(2);
        const { loss: total } = model.forward({ inputIds: ids, labels: ids });
        total.backward();
        return [total.item(), gradients(model)];
      };
      expect(run(true)).toEqual(run(false));
    },
  );
});

describe('the block', () => {
  const config = configWith({ router_aux_loss_coef: 0.3 });
  const rows = 50;
  const input = (): Tensor => {
    const data = Float32Array.from({ length: rows * 64 }, (_, i) => Math.sin(i * 1.7) * 2);
    return Tensor.from(data, [rows, 64], { requiresGrad: true });
  };
  const dy = Tensor.from(
    Float32Array.from({ length: rows * 64 }, (_, i) => Math.cos(i * 0.9)),
    [rows, 64],
  );
  const named = (block: MixtralSparseMoeBlock): MixtralSparseMoeBlock => {
    block.assignParameterNames();
    return block;
  };
  const whole = (): MixtralSparseMoeBlock => {
    manualSeed(5);
    return named(new MixtralSparseMoeBlock({ ...config, initializerRange: 0.3 }, 'float32'));
  };

  /** y, and the gradients of x and of all parameters; the auxiliary loss's gradient is that of routing alone. */
  function run(
    block: MixtralSparseMoeBlock,
    gradScale = 1,
  ): { y: Float32Array; dx: Float32Array; grads: Map<string, Float32Array> } {
    const balance = { ...routerBalance(1, 4, rows, 0.3), gradScale };
    balance.gradient.copyFrom(Tensor.from([0.01, -0.02, 0.03, 0.005]));
    const x = input();
    const y = block.forward(x, balance, 0);
    y.backward(dy);
    const grads = [...block.namedParameters()]
      .filter(([, parameter]) => parameter.grad)
      .map(([name, parameter]) => [name, parameter.grad!.dataSync() as Float32Array] as const);
    return {
      y: y.dataSync() as Float32Array,
      dx: x.grad!.dataSync() as Float32Array,
      grads: new Map(grads),
    };
  }

  /** Rows (of w1 and w3) or columns (of w2) of `part` of 2. */
  function half(matrix: 'w1' | 'w2' | 'w3', full: Parameter, part: number): Tensor {
    const data = full.dataSync() as Float32Array;
    if (matrix !== 'w2') return Tensor.from(data.slice(part * 48 * 64, (part + 1) * 48 * 64), [48, 64]);
    return Tensor.from(
      data.filter((_, i) => Math.floor((i % 96) / 48) === part),
      [64, 48],
    );
  }

  it('gives partial sums with slices of the experts, and parts of the router gradient', () => {
    const full = whole();
    const want = run(full);
    const parts = [0, 1].map((part) => {
      const block = named(new MixtralSparseMoeBlock({ ...config, intermediateSize: 48 }, 'float32'));
      block.gate.weight.copyFrom(full.gate.weight);
      for (const [e, expert] of block.experts.items.entries())
        for (const matrix of ['w1', 'w2', 'w3'] as const)
          expert[matrix].weight.copyFrom(half(matrix, full.experts.items[e]![matrix].weight, part));
      return run(block, 0.5);
    });
    const sum = (of: (result: (typeof parts)[0]) => Float32Array): Float32Array =>
      of(parts[0]!).map((x, i) => x + of(parts[1]!)[i]!);
    expect(
      relativeError(
        sum(({ y }) => y),
        want.y,
      ),
    ).toBeLessThan(1e-6);
    expect(
      relativeError(
        sum(({ dx }) => dx),
        want.dx,
      ),
    ).toBeLessThan(1e-6);
    expect(
      relativeError(
        sum(({ grads }) => grads.get('gate.weight')!),
        want.grads.get('gate.weight')!,
      ),
    ).toBeLessThan(1e-5);
  });

  it('accumulates over two backwards', () => {
    const block = whole();
    const once = run(block);
    const twice = run(block);
    for (const [name, grad] of once.grads)
      expect(
        relativeError(
          twice.grads.get(name)!,
          grad.map((x) => 2 * x),
        ),
        name,
      ).toBeLessThan(1e-6);
  });

  it('leaves out what is frozen, and nothing else changes', () => {
    const want = run(whole());
    const frozen: [string, (name: string) => boolean][] = [
      ['the router', (name) => name === 'gate.weight'],
      ['the experts', (name) => name.startsWith('experts.')],
      ['one matrix', (name) => name === 'experts.2.w3.weight'],
    ];
    for (const [what, isFrozen] of frozen) {
      const block = whole();
      for (const [name, parameter] of block.namedParameters()) parameter.requiresGrad = !isFrozen(name);
      const got = run(block);
      expect([...got.grads.keys()], what).toEqual([...want.grads.keys()].filter((name) => !isFrozen(name)));
      for (const [name, grad] of got.grads) expect(grad, `${what}: ${name}`).toEqual(want.grads.get(name));
      // Without the router there is no gradient through it either.
      if (what !== 'the router') expect(got.dx, what).toEqual(want.dx);
    }
  });

  it('keeps two products a choice for backward, and nothing without a graph', () => {
    const block = named(new MixtralSparseMoeBlock({ ...config, numLocalExperts: 8 }, 'float32'));
    const measure = (x: Tensor): number => {
      for (const parameter of block.parameters()) parameter.requiresGrad = x.requiresGrad;
      const before = memoryStats().current.activation;
      const y = scope(() => block.forward(x, undefined, 0));
      const after = memoryStats().current.activation;
      y.dispose();
      return (after - before) / 4;
    };
    const y = rows * 64;
    const products = 2 * rows * 2 * 96; // by expert they would be four times as many
    const rounding = 1.3; // of the allocator
    const plain = input();
    plain.requiresGrad = false;
    expect(measure(plain)).toBeLessThan(y * rounding);
    const kept = measure(input());
    expect(kept).toBeGreaterThan(y + products);
    const routing = rows * (2 + 2 + 8 + 2); // weights, choices, probabilities, order
    expect(kept).toBeLessThan((y + products + routing) * rounding);
  });

  it('is wrapped whole or not at all', async () => {
    const model = await AutoModelForCausalLM.fromPretrained(usual);
    const block = (model as MixtralForCausalLM).model.layers.items[0]!;
    const [first] = [...block.modules()].filter((module) => module instanceof MixtralSparseMoeBlock);
    const expert = first!.experts.items[1]!;
    // An expert has 18432 parameters.
    const units = sizeBasedAutoWrapPolicy({ minNumParams: 10_000 })(model);
    expect(units).toContain(first);
    expect(units).not.toContain(expert);
    const { w1 } = expert;
    for (const module of [expert, w1])
      expect(() => planUnits(model, moduleListPolicy([module])(model), new Set(), {})).toThrow(
        /model\.layers\.0\.block_sparse_moe\.experts\.1.* is run by model\.layers\.0\.block_sparse_moe; wrap that/,
      );
  });
});

it('starts as Transformers initialises it', () => {
  const model = fresh({ initializer_range: 0.05, hidden_size: 128, intermediate_size: 256 });
  expect(model).toBeInstanceOf(MixtralForCausalLM);
  let counted = 0;
  for (const [name, parameter] of model.namedParameters()) {
    if (!name.includes('block_sparse_moe')) continue;
    const data = parameter.dataSync() as Float32Array;
    const mean = data.reduce((sum, x) => sum + x, 0) / data.length;
    const std = Math.sqrt(data.reduce((sum, x) => sum + (x - mean) ** 2, 0) / data.length);
    expect(std / 0.05, name).toBeCloseTo(1, 1);
    expect(Math.abs(mean), name).toBeLessThan(0.01);
    counted++;
  }
  expect(counted).toBe(2 * (1 + 4 * 3));
});

it('slides its attention by the config', () => {
  const windows = (json: object): number[] =>
    (fresh(json) as MixtralForCausalLM).model.layers.items.map(
      (layer) => (layer as MixtralDecoderLayer).self_attn.window,
    );
  expect(windows({ sliding_window: 8 })).toEqual([8, 8]);
  expect(windows({})).toEqual([0, 0]);
});
