// How a job ends, as one launcher knows it: by its first failure or well, once. What comes before anybody listens is kept.
import type { StopSignal } from '../failure.ts';
import type { JobFailure, NodeEvents } from './messages.ts';

export class Verdict {
  /** The job's end is known; what happens to connections now is no failure. */
  isKnown = false;
  private events: NodeEvents | undefined;
  private readonly kept: ((events: NodeEvents) => void)[] = [];

  listen(events: NodeEvents): void {
    this.events = events;
    for (const tell of this.kept.splice(0)) tell(events);
  }

  private tell(event: (events: NodeEvents) => void): void {
    if (this.events) event(this.events);
    else this.kept.push(event);
  }

  /** Whether it is the first. */
  fail(failure: JobFailure): boolean {
    if (this.isKnown) return false;
    this.isKnown = true;
    this.tell((events) => events.onFailure(failure));
    return true;
  }

  end(stopped: StopSignal | undefined): void {
    if (this.isKnown) return;
    this.isKnown = true;
    this.tell((events) => events.onEnd(stopped));
  }

  signal(signal: StopSignal): void {
    this.tell((events) => events.onSignal(signal));
  }
}
