// What profiling costs: the steps of a job in turns of profiled and not, each waited for, in pairs whose order alternates. One line
// of JSON from rank 0: medians of a step in milliseconds, their ratio, the middle half of the ratios of pairs, events of a step.
//   rankzero run --nproc N bench/programs/profile.mjs --dir MODEL [--pairs 40] [--batch 2] [--length 256] [--precision bfloat16]
import { parseArgs } from 'node:util';
import {
  AdamW,
  AutoModelForCausalLM,
  dist,
  FullyShardedDataParallel as FSDP,
  profile,
  scope,
} from '../../dist/index.js';
import { native } from '../../dist/native.js';
import { median, round } from '../lib/statistics.mjs';

const { values: options } = parseArgs({
  options: {
    dir: { type: 'string' },
    pairs: { type: 'string', default: '40' },
    batch: { type: 'string', default: '2' },
    length: { type: 'string', default: '256' },
    precision: { type: 'string', default: 'float32' },
    threads: { type: 'string', default: '1' },
  },
});
const [pairs, batch, length] = ['pairs', 'batch', 'length'].map((name) => Number(options[name]));

await dist.initProcessGroup({ quiet: true });
native.setNumThreads(Number(options.threads));
const model = await AutoModelForCausalLM.fromPretrained(options.dir, { dtype: 'float32' });
const mixedPrecision =
  options.precision === 'bfloat16' ? { paramDtype: 'bfloat16', reduceDtype: 'float32' } : undefined;
const fsdp = new FSDP(model, { mixedPrecision });
const optimizer = new AdamW(fsdp.namedParameters(), { lr: 1e-4 });
const ids = Array.from({ length: batch }, (_, b) =>
  Array.from({ length }, (_, i) => (7919 * (b * length + i)) % model.config.vocabSize),
);

let milliseconds = 0;
async function step() {
  dist.barrier();
  const start = performance.now();
  const loss = scope(() => {
    const { loss } = fsdp.forward({ inputIds: ids, labels: ids });
    loss.backward();
    fsdp.clipGradNorm(1);
    optimizer.step();
    optimizer.zeroGrad();
    return loss;
  });
  await loss.data();
  loss.dispose();
  milliseconds = performance.now() - start;
}

let last;
const sides = {
  async off() {
    await step();
  },
  async on() {
    last = await profile(step); // its evaluation would be in the way of the next step
  },
};
const times = { off: [], on: [] };
for (let pair = -2; pair < pairs; pair++) {
  for (const side of pair % 2 ? ['off', 'on'] : ['on', 'off']) {
    await sides[side]();
    if (pair >= 0) times[side].push(milliseconds);
  }
}
const ratios = times.on.map((on, i) => on / times.off[i]).sort((a, b) => a - b);
const [off, on] = [median(times.off), median(times.on)];
const events = last.summary.ops.reduce((sum, { calls }) => sum + calls, 0);
const quarter = pairs >> 2;
if (dist.getRank() === 0) {
  const middleHalf = [ratios[quarter], ratios[pairs - 1 - quarter]].map((ratio) => round(ratio));
  console.log(JSON.stringify({ off: round(off), on: round(on), ratio: round(on / off), middleHalf, events }));
}
dist.barrier();
dist.destroyProcessGroup();
