// Latency and bandwidth of the shared-memory collectives, one JSON line a case, from rank 0:
//   node dist/cli/main.js run --nproc 2 bench/collectives.mjs [--max BYTES]
// `bytes` is the size of the whole (gathered) tensor; `gbPerSecond` is bytes / time. `direct`: shared storages.
import { dist } from '../dist/distributed/index.js';
import { native } from '../dist/native.js';

const f32 = 0;
const bf16 = 1;
const most = process.argv[2] === '--max' ? Number(process.argv[3]) : 64 << 20;

await dist.initProcessGroup();
const { group } = dist;

function empty(numel, dtype, direct) {
  return direct ? group.allocateShared(numel, dtype, 0) : native.tensorEmpty(numel, dtype, 0);
}

function measure(name, bytes, direct, enqueue, handles) {
  for (const handle of handles) native.fill(handle, 1);
  enqueue();
  enqueue();
  group.barrier();
  const batch = bytes <= 65536 ? 100 : 4;
  const times = [];
  const end = performance.now() + 400;
  // All ranks must do the same number of rounds.
  do {
    const start = performance.now();
    for (let i = 0; i < batch; i++) enqueue();
    native.streamSynchronize(0);
    times.push((performance.now() - start) / batch);
  } while (group.broadcastBytes(new Uint8Array([performance.now() < end ? 1 : 0]), 0)[0] === 1 || times.length < 5);
  times.sort((a, b) => a - b);
  const median = times[times.length >> 1];
  if (group.rank === 0) {
    const line = {
      name,
      ranks: group.size,
      bytes,
      direct,
      medianMicroseconds: Math.round(median * 1e4) / 10,
      minMicroseconds: Math.round(times[0] * 1e4) / 10,
      gbPerSecond: Math.round(bytes / median / 1e4) / 100,
    };
    process.stdout.write(`${JSON.stringify(line)}\n`);
  }
  for (const handle of handles) native.tensorRelease(handle);
}

const sizes = [8, 64, 1 << 10, 8 << 10, 64 << 10, 512 << 10, 4 << 20, 64 << 20].map(
  (bytes) => Math.ceil(bytes / 4 / group.size) * 4 * group.size,
);
for (const bytes of sizes.filter((size) => size <= most)) {
  const n = bytes / 4;
  for (const direct of bytes > 65536 ? [false, true] : [false]) {
    const part = empty(n / group.size, f32, direct);
    const whole = empty(n, f32, direct);
    measure('all_gather f32', bytes, direct, () => group.allGather(whole, part), [part, whole]);
    const part2 = empty(n / group.size, f32, direct);
    const half = empty(n, bf16, direct);
    measure('all_gather f32 to bf16', bytes, direct, () => group.allGather(half, part2), [part2, half]);
    const full = empty(n, f32, direct);
    const shard = empty(n / group.size, f32, direct);
    measure('reduce_scatter f32', bytes, direct, () => group.reduceScatter(shard, full, 'avg'), [full, shard]);
    const all = empty(n, f32, direct);
    measure('all_reduce f32', bytes, direct, () => group.allReduce(all, 'avg'), [all]);
  }
}
