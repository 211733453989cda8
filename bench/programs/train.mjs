// Loads, wraps and trains a model on random tokens. One line of JSON a rank at each mark: begin, loaded, ready, read, done.
//   rankzero run --nproc N bench/programs/train.mjs --dir MODEL [--precision bfloat16] [--steps 8] …
// The peer is bench/peers/torch_train.py: same marks, same tokens, same work per step.
import { readFileSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { broadcastJson } from '../../dist/distributed/exchange.js';
import {
  AdamW,
  AutoConfig,
  AutoModelForCausalLM,
  applyActivationCheckpointing,
  applyLora,
  DelayedParamIniter,
  dist,
  FullyShardedDataParallel as FSDP,
  init,
  initEmptyWeights,
  memoryStats,
  quantize,
  scope,
  state,
  Tensor,
  transform,
} from '../../dist/index.js';
import { native } from '../../dist/native.js';
import { useDevice } from '../../dist/tensor/streams.js';

const { values: options } = parseArgs({
  options: {
    dir: { type: 'string' },
    config: { type: 'string' }, // the text of a config.json; fresh weights
    precision: { type: 'string', default: 'float32' },
    reduce: { type: 'string', default: 'float32' }, // precision of gradients on the way, with bfloat16
    checkpointing: { type: 'string' }, // all, selective
    steps: { type: 'string', default: '8' }, // measured ones; two come before
    batch: { type: 'string', default: '2' },
    length: { type: 'string', default: '256' },
    strategy: { type: 'string', default: 'FULL_SHARD' },
    tp: { type: 'string', default: '1' },
    'sequence-parallel': { type: 'boolean', default: false },
    threads: { type: 'string' },
    device: { type: 'string', default: 'cpu' },
    clip: { type: 'string', default: '1' }, // 0: no clipping
    lora: { type: 'string' }, // rank of an adapter on all linear layers; the frozen model is in the precision of the computation
    quantize: { type: 'string' }, // nf4 or int8: how the frozen model is stored, with --lora
    read: { type: 'boolean', default: false }, // reads every shard once when all is loaded
    'config-from-rank0': { type: 'boolean', default: false }, // the model's folder is on its host alone
  },
});
const [steps, batch, length, tp, clip] = ['steps', 'batch', 'length', 'tp', 'clip'].map((name) =>
  Number(options[name]),
);
const warmUp = steps > 0 ? 2 : 0;

await dist.initProcessGroup({ quiet: true });
if (options.threads) native.setNumThreads(Number(options.threads));
useDevice(options.device);
const rank = dist.getRank();
const say = (mark, more) => console.log(JSON.stringify({ mark, rank, pid: process.pid, ...more }));
dist.barrier();
say('begin');

const json = options.config ?? (options['config-from-rank0'] ? fromRank0(`${options.dir}/config.json`) : undefined);
const config = json ? AutoConfig.fromObject(JSON.parse(json)) : await AutoConfig.fromPretrained(options.dir);

function fromRank0(path) {
  return broadcastJson(dist.group, rank === 0 ? readFileSync(path, 'utf8') : undefined);
}
const dtype = options.lora ? options.precision : undefined;
const fresh = () => AutoModelForCausalLM.fromConfig(config, { dtype });
const whole =
  options.dir && rank === 0
    ? await AutoModelForCausalLM.fromPretrained(options.dir, { dtype })
    : initEmptyWeights(fresh);
if (options.lora)
  applyLora(whole, { r: Number(options.lora), alpha: 2 * Number(options.lora), targetModules: 'all-linear' });
if (options.quantize) quantize(whole, { scheme: options.quantize });
if (tp > 1) init({ tensorParallelDegree: tp });
const model =
  tp > 1
    ? transform(whole, {
        loadStateDictFromRank0: options.dir !== undefined,
        sequenceParallel: options['sequence-parallel'],
      })
    : whole;
if (options.checkpointing) applyActivationCheckpointing(model, undefined, { recompute: options.checkpointing });
const initer = options.dir && rank === 0 ? undefined : new DelayedParamIniter(model);
const fsdp = new FSDP(model, {
  syncModuleStates: options.dir !== undefined,
  shardingStrategy: options.strategy,
  paramInitFn: initer?.getParamInitFn(),
  postParamInitFn: initer?.getPostParamInitFn(),
  mixedPrecision:
    options.precision === 'bfloat16' ? { paramDtype: 'bfloat16', reduceDtype: options.reduce } : undefined,
});
dist.barrier();
say('loaded');
const optimizer = new AdamW(fsdp.namedParameters(), { lr: 1e-4 });
say('ready');

if (options.read) {
  const sum = Tensor.zeros([1], 'float32', 'other', options.device);
  for (const { buckets } of fsdp.units)
    for (const { shard } of buckets) native.sumSquares(sum.handle, shard.handle, true);
  const sumOfSquares = sum.item();
  dist.barrier();
  say('read', { sumOfSquares });
}

// The same tokens on all ranks that share the layers.
let random = 1 + (tp > 1 ? state.dpRank : rank);
const token = () => {
  random = (random * 48271) % 2147483647;
  return random % config.vocabSize;
};
const seconds = [];
const losses = [];
for (let step = 0; step < warmUp + steps; step++) {
  const ids = Array.from({ length: batch }, () => Array.from({ length }, token));
  const start = performance.now();
  const loss = scope(() => {
    const { loss } = fsdp.forward({ inputIds: ids, labels: ids });
    loss.backward();
    if (clip > 0) fsdp.clipGradNorm(clip);
    optimizer.step();
    optimizer.zeroGrad();
    return loss;
  });
  losses.push((await loss.data())[0]); // in the order of the stream: after the optimizer
  loss.dispose();
  seconds.push((performance.now() - start) / 1000);
}
const memory = memoryStats(options.device);
const measured = seconds.slice(warmUp).sort((a, b) => a - b);
const stepSeconds = measured[measured.length >> 1];
say('done', {
  world: dist.getWorldSize(),
  dpSize: tp > 1 ? state.dpSize : dist.getWorldSize(),
  stepSeconds,
  tokensPerSecond: stepSeconds && (batch * length) / stepSeconds,
  losses,
  maxRssBytes: process.resourceUsage().maxRSS * 1024,
  allocatedPeakBytes: memory.totalPeak,
  peakBytesByKind: memory.peak,
});
dist.barrier();
dist.destroyProcessGroup();
