// How a rank ends. An orderly exit lets the peers finish what they share with it; a failure stops them at once. Under our
// launcher the error goes to it through a pipe, so that the first failure is shown once and the consequences are not.
import { writeSync } from 'node:fs';
import { inspect } from 'node:util';
import { native } from '../native.ts';

/** What a rank tells the launcher about its end: one line of JSON. */
export interface FailureReport {
  message: string;
  code: string | undefined;
  /** The error as Node prints it. */
  details: string;
}

let installed = false;
let reason: string | undefined;

function reportTo(fd: number, error: unknown): void {
  const report: FailureReport = {
    message: error instanceof Error ? error.message : String(error),
    code: (error as { code?: string } | undefined)?.code,
    details: inspect(error),
  };
  try {
    writeSync(fd, `${JSON.stringify(report)}\n`);
  } catch {
    // The launcher is gone, and this process with it.
  }
}

function statusDescriptor(): number | undefined {
  if (process.env.RANKZERO_LAUNCHER_PID !== String(process.ppid)) return undefined;
  const fd = Number(process.env.RANKZERO_STATUS_FD);
  return Number.isInteger(fd) && fd > 2 ? fd : undefined;
}

/** Once per process, when it becomes a rank. */
export function watchForFailure(): void {
  if (installed) return;
  installed = true;
  process.on('uncaughtExceptionMonitor', (error) => {
    reason = error instanceof Error ? error.message : String(error);
  });
  const fd = statusDescriptor();
  if (fd !== undefined) {
    const report = (error: unknown): void => {
      if (process.listenerCount('uncaughtException') > 1) return; // the program handles its errors itself
      reportTo(fd, error);
      process.exit(1);
    };
    process.on('uncaughtException', report);
  }
  process.on('exit', (code) => {
    if (code === 0) native.commLeave();
    else native.commFail(reason ?? `it exited with code ${code}`);
  });
}
