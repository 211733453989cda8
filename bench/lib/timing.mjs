// How often to call what is timed. The Python peers have the same rules in bench/peers/timing.py.

/** Calls of a collective over so many bytes: fewer of the large ones, at least three. */
export function callsFor(bytes, most) {
  return Math.max(3, Math.min(most, Math.round((most * (1 << 20)) / (8 * bytes))));
}

/**
 * Microseconds of one call: { least, median } of `samples` of at least `milliseconds` each, so that the wait at the end of
 * each is small beside it. `call` enqueues, `wait` waits for all that is enqueued.
 */
export function timeCalls(call, wait, { samples, milliseconds }) {
  const run = (calls) => {
    const start = performance.now();
    for (let i = 0; i < calls; i++) call();
    wait();
    return performance.now() - start;
  };
  run(1);
  const calls = Math.max(1, Math.ceil(milliseconds / Math.max(1e-4, run(3) / 3)));
  const times = Array.from({ length: samples }, () => (1000 * run(calls)) / calls).sort((a, b) => a - b);
  return { least: times[0], median: times[times.length >> 1] };
}
