// The flows of the guide as users write them: `npm run check` compiles this file, and a type error in it is a failed step. Vitest
// takes types away unread, so what is left to test here is that the compiler is given this file, and told to be strict.
import { join } from 'node:path';
import ts from 'typescript';
import { expect, it } from 'vitest';
import {
  AdamW,
  AutoConfig,
  AutoModelForCausalLM,
  type CausalLM,
  DelayedParamIniter,
  dist,
  FullyShardedDataParallel as FSDP,
  init,
  initEmptyWeights,
  type Tensor,
  transform,
  transformerAutoWrapPolicy,
} from '../../src/index.ts';

async function flows(dir: string, out: string, inputIds: Tensor, labels: Tensor): Promise<void> {
  await dist.initProcessGroup();
  const rank = dist.getRank();
  const config = await AutoConfig.fromPretrained(dir);
  const autoWrapPolicy = transformerAutoWrapPolicy();

  const plain = new FSDP(await AutoModelForCausalLM.fromPretrained(dir, { lowCpuMemUsage: true }), { autoWrapPolicy });
  plain.train();

  const model =
    rank === 0
      ? await AutoModelForCausalLM.fromPretrained(dir, { lowCpuMemUsage: true })
      : initEmptyWeights(() => AutoModelForCausalLM.fromConfig(config));
  const initer = rank > 0 ? new DelayedParamIniter(model) : undefined;
  const fsdp = new FSDP(model, {
    autoWrapPolicy,
    syncModuleStates: true,
    paramInitFn: initer?.getParamInitFn(),
    postParamInitFn: initer?.getPostParamInitFn(),
  });

  init({ tensorParallelDegree: 2, hybridShardDegree: 0, randomSeed: 1234 });
  const big = transform(model, { loadStateDictFromRank0: true });
  const late = rank !== 0 ? new DelayedParamIniter(big) : undefined;
  const wrap = () =>
    new FSDP(big, {
      autoWrapPolicy,
      syncModuleStates: true,
      paramInitFn: late?.getParamInitFn(),
      postParamInitFn: late?.getPostParamInitFn(),
    });
  const fsdpC = late ? late.validateParamsAndBuffersInited(wrap) : wrap();

  const optimizer = new AdamW(fsdp.namedParameters(), { lr: 1e-4 });
  const { loss } = fsdpC.forward({ inputIds, labels });
  loss.backward();
  fsdp.clipGradNorm(1);
  optimizer.step();
  optimizer.zeroGrad();
  const { logits }: { logits: Tensor } = fsdp.forward({ inputIds });
  logits.dispose();
  await fsdp.savePretrained(out);
}

/** Errors that the compiler must find: where it finds none, it says so of this line. */
function mistakes(model: CausalLM): void {
  // @ts-expect-error: no such option
  new FSDP(model, { autoWrap: true });
  // @ts-expect-error: tokens are numbers
  model.forward({ inputIds: [['a']] });
}

it('is among the files that npm run check compiles, strictly', () => {
  const config = join(import.meta.dirname, '../../tsconfig.json');
  const host = { ...ts.sys, onUnRecoverableConfigFileDiagnostic: () => {} };
  const project = ts.getParsedCommandLineOfConfigFile(config, {}, host);
  expect(project?.fileNames).toContain(import.meta.filename);
  expect(project?.options).toMatchObject({ strict: true, noEmit: true });
  expect(mistakes).toBeTypeOf('function');
  expect(flows).toBeTypeOf('function');
});
