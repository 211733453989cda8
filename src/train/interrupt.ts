// Ctrl-C and SIGTERM during training: the first signal asks the loop to stop after a step that all ranks agree on. A second
// Ctrl-C kills; a second SIGTERM does not, for schedulers send it to a launcher and to its ranks.
import { allGatherJson } from '../distributed/exchange.ts';
import type { StopSignal } from '../distributed/failure.ts';
import type { ProcessGroup } from '../distributed/process_group.ts';

/** Watches for the signals while it is in use. */
export class Interrupt implements Disposable {
  /** What asked this rank to stop. */
  requested: StopSignal | undefined;
  readonly #handler: (signal: NodeJS.Signals) => void;

  /** `onFirst` is called at the first signal. */
  constructor(onFirst: (signal: StopSignal) => void = () => {}) {
    this.#handler = (signal) => {
      if (this.requested === undefined) {
        this.requested = signal as StopSignal;
        onFirst(this.requested);
      } else if (signal === 'SIGINT') {
        this[Symbol.dispose]();
        process.kill(process.pid, 'SIGINT'); // nobody catches it now
      } else {
        this.requested = 'SIGTERM';
      }
    };
    process.on('SIGINT', this.#handler).on('SIGTERM', this.#handler);
  }

  /** What asked any rank of `group` to stop: SIGTERM before Ctrl-C; undefined for nothing. Collective; blocks. */
  agreed(group: ProcessGroup): StopSignal | undefined {
    const requested = allGatherJson(group, this.requested ?? null);
    return (['SIGTERM', 'SIGINT'] as const).find((signal) => requested.includes(signal));
  }

  [Symbol.dispose](): void {
    process.off('SIGINT', this.#handler).off('SIGTERM', this.#handler);
  }
}
