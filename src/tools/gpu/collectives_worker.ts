// One rank of the check of collectives: every one with values that each rank can work out, then bandwidths. Rank 0 reports.
import { dist } from '../../distributed/index.ts';
import { native } from '../../native.ts';
import { Tensor } from '../../tensor/tensor.ts';
import type { Report } from './collectives.ts';
import { medianTime } from './measure/timing.ts';
import type { Measure } from './part.ts';

await dist.initProcessGroup({ quiet: true });
const [rank, size] = [dist.getRank(), dist.getWorldSize()];
const numel = Number(process.argv[2]);
const group = dist.group;

const range = <T>(count: number, value: (i: number) => T): T[] => Array.from({ length: count }, (_, i) => value(i));
const on = (values: number[]): Tensor => Tensor.from(values, [values.length], { device: 'cuda' });
const sum = (value: (r: number) => number): number => range(size, value).reduce((a, b) => a + b, 0);

/** How many cases held. */
async function checkValues(): Promise<number> {
  let cases = 0;
  const expectValues = async (what: string, tensor: Tensor, wanted: number[]): Promise<void> => {
    cases++;
    const got = [...((await tensor.data()) as Float32Array)];
    const at = got.findIndex((value, i) => value !== wanted[i]);
    if (at >= 0 || got.length !== wanted.length)
      throw new Error(`${what} on rank ${rank}: element ${at} is ${got[at]} and should be ${wanted[at]}`);
    tensor.dispose();
  };

  const count = 1037;
  for (const op of ['sum', 'max', 'min'] as const) {
    const x = on(range(count, (i) => i + rank));
    group.allReduce(x.handle, op);
    const wanted = { sum: (i: number) => sum((r) => i + r), max: (i: number) => i + size - 1, min: (i: number) => i }[
      op
    ];
    await expectValues(`all-reduce ${op}`, x, range(count, wanted));
  }
  const from = on(range(count, (i) => i * (rank + 1)));
  group.broadcast(from.handle, size - 1);
  await expectValues(
    'broadcast',
    from,
    range(count, (i) => i * size),
  );
  const gathered = Tensor.zeros([count * size], 'float32', 'other', 'cuda');
  group.allGather(gathered.handle, on(range(count, (i) => i + 1000 * rank)).handle);
  await expectValues(
    'all-gather',
    gathered,
    range(count * size, (i) => (i % count) + 1000 * Math.floor(i / count)),
  );
  const part = Tensor.zeros([count], 'float32', 'other', 'cuda');
  group.reduceScatter(part.handle, on(range(count * size, (i) => i + rank)).handle, 'sum', false);
  await expectValues(
    'reduce-scatter',
    part,
    range(count, (i) => sum((r) => i + rank * count + r)),
  );
  const received = Tensor.zeros([count], 'float32', 'other', 'cuda');
  const whole = rank === 0 ? on(range(count * size, (i) => 3 * i)) : undefined;
  group.scatter(received.handle, whole?.handle, 0);
  await expectValues(
    'scatter',
    received,
    range(count, (i) => 3 * (i + rank * count)),
  );
  // Uneven parts, and none at all between some ranks.
  const countOf = (from: number, to: number): number => ((1 + from + 2 * to) % 3) * count;
  const [toRanks, ofRanks] = [range(size, (r) => countOf(rank, r)), range(size, (r) => countOf(r, rank))];
  const exchanged = Tensor.zeros([sum((r) => countOf(r, rank))], 'float32', 'other', 'cuda');
  const parts = range(size, (to) => range(countOf(rank, to), (i) => i + 7 * rank + to)).flat();
  group.allToAll(exchanged.handle, on(parts).handle, toRanks, ofRanks);
  await expectValues('all-to-all', exchanged, range(size, (r) => range(ofRanks[r]!, (i) => i + 7 * r + rank)).flat());
  if (size > 1) {
    const message = on(range(count, (i) => i + rank));
    const into = Tensor.zeros([count], 'float32', 'other', 'cuda');
    const [next, before] = [(rank + 1) % size, (rank + size - 1) % size];
    if (rank % 2 === 0) group.send(message.handle, next);
    group.recv(into.handle, before);
    if (rank % 2 === 1) group.send(message.handle, next);
    await expectValues(
      'send and receive',
      into,
      range(count, (i) => i + before),
    );
  }
  return cases;
}

/** Bytes that cross each rank's link, as NCCL's own tests count them. */
function measureBandwidths(): Measure[] {
  const measures: Measure[] = [];
  if (size > 1) {
    const full = Tensor.zeros([Math.ceil(numel / size) * size], 'float32', 'other', 'cuda');
    const own = Tensor.zeros([full.numel / size], 'float32', 'other', 'cuda');
    const share = ((size - 1) / size) * 4 * full.numel;
    const calls: [string, number, () => void][] = [
      ['all-reduce', 2 * share, () => group.allReduce(full.handle, 'sum')],
      ['all-gather', share, () => group.allGather(full.handle, own.handle)],
      ['reduce-scatter', share, () => group.reduceScatter(own.handle, full.handle, 'sum', false)],
    ];
    for (const [name, bytes, call] of calls) {
      const { milliseconds, spread } = medianTime([call], { samples: 10 });
      measures.push({
        name: `${name} of ${(4 * full.numel) / 1e6} MB`,
        value: bytes / milliseconds / 1e6,
        unit: 'GB/s',
        milliseconds,
        spread,
      });
    }
  }
  return measures;
}

const cases = await checkValues();
const measures = measureBandwidths();
native.streamSynchronize(native.computeStream(1));
if (rank === 0) console.log(JSON.stringify({ cases, measures } satisfies Report));
dist.barrier();
dist.destroyProcessGroup();
