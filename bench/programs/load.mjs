// Loads and wraps a checkpoint several times on one rank. One line of JSON: done, with the median seconds of the warm rounds.
//   rankzero run --nproc 1 bench/programs/load.mjs --dir MODEL [--device cuda] [--rounds 4]
import { readdirSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { AutoModelForCausalLM, dist, FullyShardedDataParallel as FSDP } from '../../dist/index.js';
import { native } from '../../dist/native.js';
import { useDevice } from '../../dist/tensor/streams.js';

const { values: options } = parseArgs({
  options: {
    dir: { type: 'string' },
    device: { type: 'string', default: 'cuda' },
    rounds: { type: 'string', default: '4' },
  },
});
await dist.initProcessGroup({ quiet: true });
useDevice(options.device);
const bytes = readdirSync(options.dir)
  .filter((file) => file.endsWith('.safetensors'))
  .reduce((sum, file) => sum + statSync(join(options.dir, file)).size, 0);
const times = [];
for (let round = 0; round < Number(options.rounds); round++) {
  const start = performance.now();
  const model = await AutoModelForCausalLM.fromPretrained(options.dir, { lowCpuMemUsage: true });
  const fsdp = new FSDP(model, { syncModuleStates: true });
  native.streamSynchronize(native.computeStream(options.device === 'cuda' ? 1 : 0));
  times.push((performance.now() - start) / 1000);
  for (const { buckets } of fsdp.units) for (const { shard } of buckets) shard.dispose();
}
const warm = times.slice(1).sort((a, b) => a - b);
const seconds = warm[warm.length >> 1];
console.log(JSON.stringify({ mark: 'done', rank: 0, pid: process.pid, seconds, firstSeconds: times[0], bytes }));
dist.destroyProcessGroup();
