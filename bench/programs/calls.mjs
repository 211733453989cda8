// What calls cost the thread that makes them; one line of JSON: { times: { case: { least, median } } } in microseconds a call.
//   node bench/programs/calls.mjs CALLS SAMPLES
import { add } from '../../dist/autograd/functions/arithmetic.js';
import { scope, Tensor } from '../../dist/index.js';
import { native } from '../../dist/native.js';

const [calls, samples] = process.argv.slice(2).map(Number);
native.setNumThreads(1);
const x = Tensor.zeros([1]);
const y = Tensor.zeros([1]);
const { handle } = x;

// case → what one call does
const cases = {
  'native call without work': () => native.tensorUseCount(handle),
  'enqueue of a tiny op': () => native.fill(handle, 1),
  'native tensor, made and released': () => native.tensorRelease(native.tensorEmpty(1, 0, 0)),
  'tensor, made and disposed': () => Tensor.empty([1]).dispose(),
  'op with a result, disposed': () => add(x, y).dispose(),
  'empty scope': () => scope(() => undefined),
  'scope around an op': () => scope(() => void add(x, y)),
  'tiny op, waited for': () => {
    native.fill(handle, 1);
    native.streamSynchronize(0);
  },
};

const times = {};
for (const [name, call] of Object.entries(cases)) {
  const seen = [];
  for (let sample = -3; sample < samples; sample++) {
    const start = performance.now();
    for (let i = 0; i < calls; i++) call();
    if (sample >= 0) seen.push((1000 * (performance.now() - start)) / calls);
    native.streamSynchronize(0); // not timed: the calls are, not the work
  }
  seen.sort((a, b) => a - b);
  times[name] = { least: seen[0], median: seen[seen.length >> 1] };
}
console.log(JSON.stringify({ mark: 'done', rank: 0, pid: process.pid, times }));
