// Ctrl-C during training: the first one asks the loop to stop after a step that all ranks agree on, the second one kills.

/** Watches for SIGINT while it is in use. */
export class Interrupt implements Disposable {
  /** Whether this rank was asked to stop. */
  requested = false;
  readonly #handler: () => void;

  /** `onFirst` is called at the first signal. */
  constructor(onFirst: () => void = () => {}) {
    this.#handler = () => {
      if (this.requested) {
        this[Symbol.dispose]();
        process.kill(process.pid, 'SIGINT'); // nobody catches it now
        return;
      }
      this.requested = true;
      onFirst();
    };
    process.on('SIGINT', this.#handler);
  }

  [Symbol.dispose](): void {
    process.off('SIGINT', this.#handler);
  }
}
