// Host memory of ranks, sampled from outside: private and shared memory as Pss, by kind, where a page that n processes map
// counts 1/n in each. Peaks are kept by phase.
import { readFileSync } from 'node:fs';

/** In bytes; undefined when the process is gone. `total` is anon + shmem: file pages are the page cache's. */
export function memoryOf(pid) {
  try {
    const text = readFileSync(`/proc/${pid}/smaps_rollup`, 'utf8');
    const bytes = (key) => 1024 * Number(new RegExp(`^${key}:\\s+(\\d+)`, 'm').exec(text)[1]);
    const [anon, shmem] = [bytes('Pss_Anon'), bytes('Pss_Shmem')];
    return { total: anon + shmem, anon, shmem, file: bytes('Pss_File') };
  } catch {
    return undefined;
  }
}

export class MemorySampler {
  constructor(milliseconds) {
    this.milliseconds = milliseconds;
    this.ranks = new Map(); // rank → { pid, phase }
    this.peaks = {}; // phase → rank → the sample with the greatest total
    this.sums = {}; // phase → the greatest sum over ranks of samples taken together
    this.samples = 0;
  }

  /** Rank `rank` enters a phase; undefined: it is watched no more. */
  enter(rank, pid, phase) {
    this.sample();
    if (phase === undefined) this.ranks.delete(rank);
    else this.ranks.set(rank, { pid, phase });
    this.timer ??= setInterval(() => this.sample(), this.milliseconds);
    if (this.ranks.size === 0) this.stop();
  }

  sample() {
    const sums = {};
    for (const [rank, { pid, phase }] of this.ranks) {
      const memory = memoryOf(pid);
      if (!memory) continue;
      this.samples++;
      sums[phase] = (sums[phase] ?? 0) + memory.total;
      this.peaks[phase] ??= {};
      if (memory.total > (this.peaks[phase][rank]?.total ?? 0)) this.peaks[phase][rank] = memory;
    }
    for (const [phase, sum] of Object.entries(sums)) this.sums[phase] = Math.max(sum, this.sums[phase] ?? 0);
  }

  stop() {
    clearInterval(this.timer);
    this.timer = undefined;
  }
}
