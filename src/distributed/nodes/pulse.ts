// Heartbeats on a connection between launchers. A host that stops or vanishes closes no connection; it is silent.

export class Pulse {
  private last = performance.now();
  private readonly timer: NodeJS.Timeout;

  /** Calls `beat` now and then, and `onSilence` once nothing was heard for `timeout` seconds. */
  constructor(beat: () => void, timeout: number, onSilence: () => void) {
    const interval = Math.min(timeout / 5, 5) * 1000;
    let tick = this.last;
    this.timer = setInterval(() => {
      const now = performance.now();
      // This process itself did not run: it may have been stopped, and has not read what came since.
      if (now - tick > 2 * interval) this.last = now;
      tick = now;
      beat();
      if (now - this.last < timeout * 1000) return;
      this.stop();
      onSilence();
    }, interval);
  }

  heard(): void {
    this.last = performance.now();
  }

  stop(): void {
    clearInterval(this.timer);
  }
}
