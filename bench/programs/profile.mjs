// What profiling costs: the steps of a job in turns of profiled and not, each waited for, in pairs whose order alternates. One line
// of JSON from rank 0: medians of a step in milliseconds, their ratio, the middle half of the ratios of pairs, events of a step;
// by wall clock and, which other processes disturb less, by the processor time of all threads of the rank.
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
let cpuMilliseconds = 0;
async function step() {
  dist.barrier();
  const start = performance.now();
  const cpu = process.cpuUsage();
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
  const { user, system } = process.cpuUsage(cpu);
  cpuMilliseconds = (user + system) / 1000;
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
const cpuTimes = { off: [], on: [] };
for (let pair = -2; pair < pairs; pair++) {
  for (const side of pair % 2 ? ['off', 'on'] : ['on', 'off']) {
    await sides[side]();
    if (pair < 0) continue;
    times[side].push(milliseconds);
    cpuTimes[side].push(cpuMilliseconds);
  }
}
const quarter = pairs >> 2;
function compare({ off, on }) {
  const ratios = on.map((value, i) => value / off[i]).sort((a, b) => a - b);
  const middleHalf = [ratios[quarter], ratios[pairs - 1 - quarter]].map((ratio) => round(ratio));
  return { off: round(median(off)), on: round(median(on)), ratio: round(median(on) / median(off)), middleHalf };
}
const events = last.summary.ops.reduce((sum, { calls }) => sum + calls, 0);
if (dist.getRank() === 0) console.log(JSON.stringify({ wall: compare(times), cpu: compare(cpuTimes), events }));
dist.barrier();
dist.destroyProcessGroup();
