// Times collectives on every rank; one line of JSON a rank at the end: { times: { case: { waited, enqueued } } } in microseconds.
//   rankzero run --nproc N bench/programs/collectives.mjs SIZE,SIZE… SAMPLES
// `waited`: median of single calls, each after a barrier and waited for. `enqueued`: a call among many, waited for together.
// Tensors are `group`: allocated by the process group, in place where the operation can be; `plain`; or `mapped`: memory that
// all ranks map, in which FSDP gathers.
import { dist } from '../../dist/distributed/index.js';
import { native } from '../../dist/native.js';
import { median } from '../lib/statistics.mjs';
import { callsFor } from '../lib/timing.mjs';

const [sizes, samples] = [process.argv[2].split(',').map(Number), Number(process.argv[3])];
const float32 = 0;
const bfloat16 = 1;
await dist.initProcessGroup({ quiet: true });
const { group } = dist;
native.setNumThreads(1);

const times = {};

function measure(name, bytes, handles, enqueue) {
  for (const handle of handles) native.fill(handle, 0);
  const calls = callsFor(bytes, samples);
  const waited = [];
  for (let i = 0; i <= calls; i++) {
    group.barrier();
    const start = performance.now();
    enqueue();
    native.streamSynchronize(0);
    if (i > 0) waited.push(performance.now() - start);
  }
  group.barrier();
  const start = performance.now();
  for (let i = 0; i < calls; i++) enqueue();
  native.streamSynchronize(0);
  const enqueued = (performance.now() - start) / calls;
  times[`${name} ${bytes}`] = { waited: 1000 * median(waited), enqueued: 1000 * enqueued };
  for (const handle of handles) native.tensorRelease(handle);
  native.commTrim();
}

const tensors = {
  group: (numel, dtype = float32) => group.allocateShared(numel, dtype, 0),
  plain: (numel, dtype = float32) => native.tensorEmpty(numel, dtype, 0),
};
for (const bytes of sizes) {
  const part = Math.max(1, Math.floor(bytes / 4 / group.size));
  const whole = part * group.size;
  for (const [memory, make] of Object.entries(tensors)) {
    const run = (name, handles, enqueue) => measure(`${name}/${memory}`, bytes, handles, enqueue);
    const all = make(whole);
    run('all_reduce', [all], () => group.allReduce(all));
    const sent = make(whole);
    run('broadcast', [sent], () => group.broadcast(sent, 0));
    const gathered = make(whole);
    const own = memory === 'group' ? native.tensorView(gathered, group.rank * part, part) : make(part);
    run('all_gather', [gathered, own], () => group.allGather(gathered, own));
    const [narrow, master] = [make(whole, bfloat16), make(part)];
    run('all_gather_cast', [narrow, master], () => group.allGather(narrow, master));
    const full = make(whole);
    const reduced = memory === 'group' ? native.tensorView(full, group.rank * part, part) : make(part);
    run('reduce_scatter', [full, reduced], () => group.reduceScatter(reduced, full));
  }
  const mapped = group.allocateWhole(whole, float32, 0);
  const own = native.tensorView(mapped, group.rank * part, part);
  measure('all_gather/mapped', bytes, [own, mapped], () => group.allGather(mapped, own));
}
console.log(JSON.stringify({ mark: 'done', rank: group.rank, pid: process.pid, times }));
dist.barrier();
dist.destroyProcessGroup();
