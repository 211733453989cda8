// A training script from end to end: rank 0 loads, the others start on meta, FSDP trains, everyone saves.
//   npx rankzero run --nproc 2 examples/train.mjs
import { fileURLToPath } from 'node:url';
import {
  AdamW,
  AutoConfig,
  AutoModelForCausalLM,
  AutoTokenizer,
  DataLoader,
  DelayedParamIniter,
  dist,
  FullyShardedDataParallel as FSDP,
  initEmptyWeights,
  loadDataset,
  noGrad,
  scheduleFactor,
  scope,
  selectDevice,
  Tensor,
  transformerAutoWrapPolicy,
} from 'rankzero';

const path = (name) => fileURLToPath(new URL(name, import.meta.url));
const dir = path('moby-llama');
// Folder of the model, what to compute on (auto, cpu or cuda), steps.
const [out = 'out/train', wanted = 'auto', steps] = process.argv.slice(2);
const [epochs, lr] = [3, 6e-4];

await dist.initProcessGroup();
const [rank, worldSize] = [dist.getRank(), dist.getWorldSize()];
const say = (text) => rank === 0 && console.log(text);
const { device, reason } = selectDevice(wanted);
say(`computing on ${device}, ${reason}`);

// Data. Every rank reads the files and takes its part of each step; the order depends on the seed alone.
const tokenizer = await AutoTokenizer.fromPretrained(dir);
const load = async (split) => (await loadDataset(path(`data/devils-dictionary.${split}.jsonl`), tokenizer)).dataset;
const parts = { dpRank: rank, dpSize: worldSize };
const train = new DataLoader(await load('train'), { batchSize: 8, seed: 42, ...parts });
const evaluation = new DataLoader(await load('eval'), { batchSize: 8, shuffle: false, ...parts });

// Model. Rank 0 opens the checkpoint; the others build the same modules with shapes and no bytes.
const config = await AutoConfig.fromPretrained(dir);
const model =
  rank === 0
    ? await AutoModelForCausalLM.fromPretrained(dir, { lowCpuMemUsage: true })
    : initEmptyWeights(() => AutoModelForCausalLM.fromConfig(config));
const initer = rank > 0 ? new DelayedParamIniter(model) : undefined;
const fsdp = new FSDP(model, {
  autoWrapPolicy: transformerAutoWrapPolicy(),
  syncModuleStates: true,
  paramInitFn: initer?.getParamInitFn(),
  postParamInitFn: initer?.getPostParamInitFn(),
  mixedPrecision: { paramDtype: 'float32' }, // float32 masters, though the file is bfloat16
});
const optimizer = new AdamW(fsdp.namedParameters(), { lr, weightDecay: 0.1 });

/** The loss of one batch; numItems makes it exact however the labels are spread over ranks. */
function lossOf({ inputIds, labels, positionIds, cuSeqlens }, numItems) {
  return fsdp.forward({ inputIds, labels, positionIds, cuSeqlens, numItemsInBatch: numItems }).loss;
}

/** Mean loss over the labels of the evaluation data, the same number on every rank. */
function evaluate() {
  let sum = 0;
  let count = 0;
  for (let i = evaluation.stepsInEpoch(); i > 0; i--) {
    const { microBatches, numItems } = evaluation[Symbol.iterator]().next().value;
    const loss = noGrad(() => scope(() => lossOf(microBatches[0], numItems).item()));
    sum += (loss * numItems) / worldSize;
    count += numItems;
  }
  const total = Tensor.from(Float32Array.of(sum), [1]);
  dist.group.allReduce(total.handle);
  return total.item() / count;
}

say(`evaluation loss ${evaluate().toFixed(3)} before training`);
const totalSteps = steps === undefined ? train.totalSteps(epochs) : Number(steps);
let step = 0;
for (const { microBatches, numItems } of train) {
  optimizer.lr = lr * scheduleFactor('linear', step, totalSteps);
  scope(() => {
    const loss = lossOf(microBatches[0], numItems);
    loss.backward();
    fsdp.clipGradNorm(1);
    optimizer.step();
    optimizer.zeroGrad();
    // Reading the loss waits for the step; do it now and then.
    if (step % 20 === 0) say(`step ${step + 1}/${totalSteps}  loss ${loss.item().toFixed(3)}`);
  });
  if (++step === totalSteps) break;
}
say(`evaluation loss ${evaluate().toFixed(3)} after training`);

await fsdp.savePretrained(out);
say(`saved ${out}`);
dist.destroyProcessGroup();
