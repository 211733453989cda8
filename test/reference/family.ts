// What every family must give in one process to equal Transformers: logits, loss, every gradient, ten AdamW updates.
import { describe, expect, it } from 'vitest';
import { AutoModelForCausalLM } from '../../src/models/auto.ts';
import { native } from '../../src/native.ts';
import { AdamW } from '../../src/optim/adamw.ts';
import { Tensor } from '../../src/tensor/tensor.ts';
import { caseDir, llamaCases, maxError, referenceTensors, relativeError, trainingRun, values } from './cases.ts';

/** A case of every family, and of every way its weights differ. */
export const familyCases: readonly string[] = [
  ...llamaCases,
  'mistral-window',
  'qwen2',
  'qwen3',
  'qwen3-window',
  'gpt-neox',
  'gpt-neox-sequential',
  'mixtral',
];

/** Defines the tests of one reference case. */
export function familyTests(name: string): void {
  describe(name, () => {
    it('gives the logits, the loss and every gradient of Transformers', async () => {
      const model = await AutoModelForCausalLM.fromPretrained(caseDir(name));
      const reference = await referenceTensors(name);
      const inputIds = reference.get('input_ids')!;
      const labels = reference.get('labels')!;
      const { logits } = model.forward({ inputIds });
      expect(maxError(await values(logits), await values(reference.get('logits')!))).toBeLessThan(1e-5);

      const { loss } = model.forward({ inputIds, labels });
      expect(Math.abs(loss.item() / reference.get('loss')!.item() - 1)).toBeLessThan(1e-6);
      loss.backward();
      let compared = 0;
      for (const [parameterName, parameter] of model.namedParameters()) {
        const want = reference.get(`grad.${parameterName}`)!;
        expect(relativeError(await values(parameter.grad!), await values(want)), parameterName).toBeLessThan(2e-5);
        compared++;
      }
      expect(compared).toBe([...reference.keys()].filter((key) => key.startsWith('grad.')).length);
    });

    it('gives the same loss and gradients by way of logits', async () => {
      const model = await AutoModelForCausalLM.fromPretrained(caseDir(name));
      const reference = await referenceTensors(name);
      const { loss, logits } = model.forward({
        inputIds: reference.get('input_ids')!,
        labels: reference.get('labels')!,
        returnLogits: true,
      });
      expect(logits!.shape).toEqual(reference.get('logits')!.shape);
      expect(Math.abs(loss.item() / reference.get('loss')!.item() - 1)).toBeLessThan(1e-6);
      loss.backward();
      for (const [parameterName, parameter] of model.namedParameters()) {
        const want = reference.get(`grad.${parameterName}`)!;
        expect(relativeError(await values(parameter.grad!), await values(want)), parameterName).toBeLessThan(2e-5);
      }
    });

    it('stays near in bfloat16', async () => {
      const model = await AutoModelForCausalLM.fromPretrained(caseDir(name), { dtype: 'bfloat16' });
      const reference = await referenceTensors(name);
      const inputIds = reference.get('input_ids')!;
      const { logits } = model.forward({ inputIds });
      expect(relativeError(await values(logits), await values(reference.get('logits')!))).toBeLessThan(1.5e-2);
      const { loss } = model.forward({ inputIds, labels: reference.get('labels')! });
      expect(Math.abs(loss.item() / reference.get('loss')!.item() - 1)).toBeLessThan(1e-3);
      loss.backward();
      // All together: the gradients of key biases are what is left of larger terms.
      const [got, want]: [number[], number[]] = [[], []];
      for (const [parameterName, parameter] of model.namedParameters()) {
        got.push(...(await values(parameter.grad!)));
        want.push(...(await values(reference.get(`grad.${parameterName}`)!)));
      }
      expect(relativeError(got, want)).toBeLessThan(3e-2);
    });

    it('generates from its cache what whole forwards would give', async () => {
      const model = await AutoModelForCausalLM.fromPretrained(caseDir(name));
      const ids = await values((await referenceTensors(name)).get('input_ids')!);
      const prompt = Array.from(ids.slice(0, 12), Number);
      const got = await model.generate(prompt, { maxNewTokens: 12, eosTokenId: [] });
      const want = [...prompt];
      while (want.length < prompt.length + 12) {
        const logits = await values(model.forward({ inputIds: [want] }).logits);
        const last = logits.subarray(-model.config.vocabSize);
        want.push(last.indexOf(Math.max(...last)));
      }
      expect(got).toEqual(want);
    });

    it('gives ten losses and gradient norms of AdamW', async () => {
      const model = await AutoModelForCausalLM.fromPretrained(caseDir(name));
      const reference = await referenceTensors(name);
      const run = trainingRun(name);
      const optimizer = new AdamW(model.namedParameters(), {
        lr: run.lr,
        betas: run.betas,
        eps: run.eps,
        weightDecay: run.weight_decay,
      });
      for (let step = 0; step < run.steps; step++) {
        const { loss } = model.forward({ inputIds: reference.get('input_ids')!, labels: reference.get('labels')! });
        loss.backward();
        const norm = clip(
          [...model.parameters()].map((parameter) => parameter.grad!),
          run.max_grad_norm,
        );
        optimizer.step();
        optimizer.zeroGrad();
        expect(Math.abs(loss.item() / run.losses[step]! - 1), `loss of step ${step}`).toBeLessThan(1e-5);
        expect(Math.abs(norm / run.grad_norms[step]! - 1), `norm of step ${step}`).toBeLessThan(1e-5);
      }
    });
  });
}

function clip(grads: Tensor[], maxNorm: number): number {
  const [sum, factor, norm] = [Tensor.zeros([1]), Tensor.empty([1]), Tensor.empty([1])];
  for (const grad of grads) native.sumSquares(sum.handle, grad.handle, true);
  native.clipFactor(norm.handle, factor.handle, sum.handle, maxNorm);
  for (const grad of grads) native.scale(grad.handle, grad.handle, factor.handle, 1, false);
  return norm.item();
}
