// Deferred initialisation in one process: what is emptied, what is counted, and what is proved.
import { expect, test } from 'vitest';
import { AutoModelForCausalLM } from '../../src/models/auto.ts';
import type { CausalLM } from '../../src/models/causal_lm.ts';
import { AutoConfig } from '../../src/models/config.ts';
import { initEmptyWeights } from '../../src/nn/init_empty_weights.ts';
import { Linear } from '../../src/nn/layers.ts';
import { Module } from '../../src/nn/module.ts';
import { DelayedParamIniter, emptyModuleParams, numParameters } from '../../src/parallel/delayed_param.ts';
import { Tensor } from '../../src/tensor/tensor.ts';
import { caseDir } from '../reference/cases.ts';

class Pair extends Module {
  readonly scale = new Linear(2, 3);
  readonly inner = new Linear(3, 4);

  constructor() {
    super();
    this.registerBuffer('table', Tensor.full([2], 5));
  }

  forward(): void {}
}

const meta = async (name: string): Promise<CausalLM> => {
  const config = await AutoConfig.fromPretrained(caseDir(name));
  return initEmptyWeights(() => AutoModelForCausalLM.fromConfig(config));
};

test('emptyModuleParams gives memory to own parameters only, and leaves buffers', () => {
  const pair = initEmptyWeights(() => new Pair());
  emptyModuleParams(pair, 'cpu');
  expect(pair.scale.weight.device).toBe('meta'); // not its own
  emptyModuleParams(pair.scale, 'cpu');
  expect([pair.scale.weight.device, pair.scale.weight.lastWriter]).toEqual(['cpu', 'none']);
  expect(pair.inner.weight.device).toBe('meta');
  emptyModuleParams(pair, 'cpu', { recurse: true });
  expect([...pair.parameters()].map(({ device }) => device)).not.toContain('meta');
  const [[, table]] = [...pair.namedBuffers()] as [[string, Tensor]];
  expect([...table.dataSync()]).toEqual([5, 5]);
});

test('emptyModuleParams without a device leaves parameters where they are, without values', () => {
  const linear = new Linear(2, 3);
  linear.weight.copyFrom(Tensor.full([3, 2], 1));
  emptyModuleParams(linear);
  expect([linear.weight.device, linear.weight.lastWriter]).toEqual(['cpu', 'none']);
  const absent = initEmptyWeights(() => new Linear(2, 3));
  emptyModuleParams(absent);
  expect(absent.weight.device).toBe('meta');
});

test('countNumParams counts what the init function initialises, tied parameters once', async () => {
  const model = await meta('llama3-rope-tied');
  const initer = new DelayedParamIniter(model);
  expect(initer.numParamsInited).toBe(0);
  const init = initer.getParamInitFn();
  init(model.inputEmbedding);
  expect(initer.numParamsInited).toBe(model.inputEmbedding.weight.numel);
  for (const module of model.modules()) init(module);
  expect(initer.numParamsInited).toBe(numParameters(model));
  initer.validateParamsAndBuffersInited(() => undefined);
});

test('countNumParams may be told by a program what it initialised', () => {
  const linear = new Linear(2, 3);
  const initer = new DelayedParamIniter(linear);
  initer.countNumParams(linear, linear.weight);
  expect(initer.numParamsInited).toBe(6);
  initer.countNumParams(linear);
  expect(initer.numParamsInited).toBe(numParameters(linear));
});

test('counting proves nothing: what was only emptied is not initialised', async () => {
  const model = await meta('llama');
  const initer = new DelayedParamIniter(model, { initMethodUsingConfig: (module) => emptyModuleParams(module, 'cpu') });
  const init = initer.getParamInitFn();
  const wrap = (): void => {
    for (const module of model.modules()) init(module);
  };
  expect(() => initer.validateParamsAndBuffersInited(wrap)).toThrow(
    /never written: model\.embed_tokens\.weight, .*; (\d+) of \1 elements went through the init function/,
  );
});
