// Time of a training step under FSDP, random tokens. One JSON line per rank.
// usage: rankzero run --nproc N bench/train_step.mjs MODEL [float32|bfloat16] [steps] [batch] [length] [strategy] [tp] [sequence]
// `tp`: ranks that share each layer; `sequence`: with sequence parallelism.
import {
  AdamW,
  AutoConfig,
  AutoModelForCausalLM,
  DelayedParamIniter,
  dist,
  FullyShardedDataParallel as FSDP,
  init,
  initEmptyWeights,
  memoryStats,
  state,
  transform,
} from '../dist/index.js';

const [
  dir,
  precision = 'float32',
  steps = '10',
  batch = '2',
  length = '256',
  shardingStrategy = 'FULL_SHARD',
  tp = '1',
  sequence,
] = process.argv.slice(2);
await dist.initProcessGroup({ quiet: true });
const rank = dist.getRank();
const config = await AutoConfig.fromPretrained(dir);
const wrapped = performance.now();
const whole =
  rank === 0
    ? await AutoModelForCausalLM.fromPretrained(dir)
    : initEmptyWeights(() => AutoModelForCausalLM.fromConfig(config));
if (Number(tp) > 1) init({ tensorParallelDegree: Number(tp) });
const model =
  Number(tp) > 1 ? transform(whole, { loadStateDictFromRank0: true, sequenceParallel: sequence !== undefined }) : whole;
const initer = rank > 0 ? new DelayedParamIniter(model) : undefined;
const fsdp = new FSDP(model, {
  syncModuleStates: true,
  shardingStrategy,
  paramInitFn: initer?.getParamInitFn(),
  mixedPrecision: precision === 'bfloat16' ? { paramDtype: 'bfloat16', reduceDtype: 'float32' } : undefined,
});
const loadSeconds = (performance.now() - wrapped) / 1000;
const optimizer = new AdamW(fsdp.namedParameters(), { lr: 1e-4 });
// The same tokens on all ranks that share the layers.
let random = 1 + state.dpRank;
const token = () => {
  random = (random * 48271) % 2147483647;
  return random % config.vocabSize;
};
const seconds = [];
let last = 0;
for (let step = 0; step < Number(steps); step++) {
  const ids = Array.from({ length: Number(batch) }, () => Array.from({ length: Number(length) }, token));
  const start = performance.now();
  const { loss } = fsdp.forward({ inputIds: ids, labels: ids });
  loss.backward();
  fsdp.clipGradNorm(1);
  optimizer.step();
  optimizer.zeroGrad();
  last = (await loss.data())[0];
  seconds.push((performance.now() - start) / 1000);
}
// As the peer's program: the median without the first two steps.
const kept = seconds.slice(2).sort((a, b) => a - b);
const median = kept[kept.length >> 1];
console.log(
  JSON.stringify({
    rank,
    world: dist.getWorldSize(),
    precision,
    shardingStrategy,
    tp: Number(tp),
    loadSeconds: Number(loadSeconds.toFixed(3)),
    stepSeconds: Number(median.toFixed(4)),
    tokensPerSecond: Number(((Number(batch) * Number(length)) / median).toFixed(1)),
    residentMegabytes: Math.round(process.memoryUsage().rss / 1e6),
    allocatedPeakMegabytes: Math.round(memoryStats().totalPeak / 1e6),
    loss: last,
  }),
);
dist.barrier();
dist.destroyProcessGroup();
