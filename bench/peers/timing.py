"""The rules of bench/lib/timing.mjs."""
import math, time


def calls_for(size, most):
    return max(3, min(most, round(most * (1 << 20) / (8 * size))))


def time_calls(call, samples, milliseconds):
    """Microseconds of one call: least and median of samples of at least so many milliseconds each."""
    def run(calls):
        start = time.perf_counter()
        for _ in range(calls):
            call()
        return time.perf_counter() - start
    run(1)
    calls = max(1, math.ceil(milliseconds / max(1e-4, run(3) / 3 * 1e3)))
    times = sorted(1e6 * run(calls) / calls for _ in range(samples))
    return dict(least=times[0], median=times[len(times) // 2])
