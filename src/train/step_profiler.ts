// The profile of some steps of a run: what is enqueued for them is recorded, and it is written when they have run.
import { constants } from 'node:fs';
import { access, mkdir } from 'node:fs/promises';
import { discardRecording, isRecording, startRecording, stopRecording, takeRecording } from '../core/recorder.ts';
import { fromRank0 } from '../distributed/agree.ts';
import { dist } from '../distributed/index.ts';
import { Profile } from '../profile/profile.ts';
import type { FinetuneOptions } from './options.ts';
import { type StepRange, stepsToProfile } from './profile_steps.ts';
import type { ProfileRecord } from './reporter.ts';

export class StepProfiler implements Disposable {
  private readonly dir: string;
  private readonly steps: StepRange;
  private readonly onProfile: (record: ProfileRecord) => void;
  private isStarted = false;
  private isWritten = false;

  private constructor(dir: string, steps: StepRange, onProfile: (record: ProfileRecord) => void) {
    this.dir = dir;
    this.steps = steps;
    this.onProfile = onProfile;
  }

  /**
   * For a run that does the steps after `done` up to `total`; undefined when it profiles none. Collective. Errors: a folder
   * that cannot be written, steps that the run does not do.
   */
  static async prepare(
    { profile: dir, profileSteps }: FinetuneOptions,
    done: number,
    total: number,
    onProfile: (record: ProfileRecord) => void,
  ): Promise<StepProfiler | undefined> {
    if (dir === undefined) return undefined;
    const steps = stepsToProfile(profileSteps, done, total);
    await fromRank0(dist.group, `--profile ${dir}`, async () => {
      await mkdir(dir, { recursive: true });
      await access(dir, constants.W_OK);
    });
    return steps && new StepProfiler(dir, steps, onProfile);
  }

  /** Before a step is enqueued. */
  before(step: number): void {
    if (step !== this.steps.first) return;
    startRecording();
    this.isStarted = true;
  }

  /** When a step has been enqueued: what to do when it has run, if it was the last one. */
  after(step: number): (() => Promise<void>) | undefined {
    if (step !== this.steps.last) return undefined;
    stopRecording();
    return () => this.write(step);
  }

  /** After the last step of a run, which may have stopped early. Collective. */
  async finish(step: number): Promise<void> {
    if (!this.isStarted || this.isWritten) return;
    if (isRecording()) stopRecording();
    await this.write(step);
  }

  private async write(last: number): Promise<void> {
    this.isWritten = true;
    const profile = new Profile(await takeRecording(), undefined);
    const files = await profile.save(this.dir);
    this.onProfile({ first: this.steps.first, last, files, profile });
  }

  /** After an error there is no profile. */
  [Symbol.dispose](): void {
    if (this.isStarted && !this.isWritten) discardRecording();
  }
}
