// Flow C: rank 0 loads, the others start on meta, the layers are divided over tensor-parallel ranks, FSDP shards the parts.
//   npx rankzero run --nproc 4 examples/tensor_parallel.mjs [out] [tensor-parallel degree] [steps]
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
  init,
  initEmptyWeights,
  loadDataset,
  scope,
  state,
  transform,
} from 'rankzero';

const path = (name) => fileURLToPath(new URL(name, import.meta.url));
const dir = path('moby-llama');
const [out = 'out/tensor_parallel', degree = '2', steps = '40'] = process.argv.slice(2);

await dist.initProcessGroup();
init({ tensorParallelDegree: Number(degree), randomSeed: 42 });
const rank = dist.getRank();
const say = (text) => rank === 0 && console.log(text);

const config = await AutoConfig.fromPretrained(dir);
const options = { dtype: 'float32' };
const model =
  rank === 0
    ? await AutoModelForCausalLM.fromPretrained(dir, options)
    : initEmptyWeights(() => AutoModelForCausalLM.fromConfig(config, options));

// No byte of a weight moves here: every parameter of the result knows which part of rank 0's it is.
const parts = transform(model, { loadStateDictFromRank0: true });
const initer = rank > 0 ? new DelayedParamIniter(parts) : undefined;
const wrap = () =>
  new FSDP(parts, {
    syncModuleStates: true,
    paramInitFn: initer?.getParamInitFn(),
    postParamInitFn: initer?.getPostParamInitFn(),
  });
const fsdp = initer ? initer.validateParamsAndBuffersInited(wrap) : wrap();
say(`${state.tpSize} ranks share each layer, ${state.dpSize} copies are sharded`);

// Ranks that share layers get the same batches.
const tokenizer = await AutoTokenizer.fromPretrained(dir);
const { dataset } = await loadDataset(path('data/devils-dictionary.train.jsonl'), tokenizer);
const loader = new DataLoader(dataset, { batchSize: 8, seed: 42, dpRank: state.dpRank, dpSize: state.dpSize });

const optimizer = new AdamW(fsdp.namedParameters(), { lr: 6e-4 });
let step = 0;
for (const { microBatches, numItems } of loader) {
  scope(() => {
    const [{ inputIds, labels, cuSeqlens }] = microBatches;
    const { loss } = fsdp.forward({ inputIds, labels, cuSeqlens, numItemsInBatch: numItems });
    loss.backward();
    fsdp.clipGradNorm(1);
    optimizer.step();
    optimizer.zeroGrad();
    if (step % 10 === 0) say(`step ${step + 1}/${steps}  loss ${loss.item().toFixed(3)}`);
  });
  if (++step === Number(steps)) break;
}
await fsdp.savePretrained(out); // whole tensors, in Hugging Face layout
say(`saved ${out}`);
dist.destroyProcessGroup();
