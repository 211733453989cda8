// What a failing rank tells the launcher, through a pipe, instead of dumping it: so the first failure of a job is shown
// once, and the errors of the ranks that only follow from it are not.
import { writeSync } from 'node:fs';
import { inspect } from 'node:util';
import { processState } from '../core/context.ts';
import { settings } from '../environment.ts';

/** A signal that asks a job to stop. */
export type StopSignal = 'SIGINT' | 'SIGTERM';

/** What a rank tells the launcher about its end: one line of JSON. */
export interface RankReport {
  message?: string;
  code?: string | undefined;
  /** The error as Node prints it. */
  details?: string;
  /** It ended early and well, as this signal asked it to, or another rank. */
  stopped?: StopSignal;
}

interface Failure {
  /** Whether this process is watched. */
  installed: boolean;
  reason: string | undefined;
}

const failure: Failure = processState<Failure>('failure', 'the error that ends this process', {
  installed: false,
  reason: undefined,
});

/** The message of the error that ends this process, if one does. */
export function failureReason(): string | undefined {
  return failure.reason;
}

/** The code of an error or of what caused it: an ERR_PEER keeps its meaning when it is wrapped. */
function codeOf(error: unknown): string | undefined {
  let code: string | undefined;
  for (
    let e = error as { code?: string; cause?: unknown } | undefined;
    e && typeof e === 'object';
    e = e.cause as typeof e
  ) {
    code = e.code ?? code;
  }
  return code;
}

function errorReport(error: unknown, details: string): RankReport {
  return { message: error instanceof Error ? error.message : String(error), code: codeOf(error), details };
}

function reportTo(fd: number, report: RankReport): void {
  try {
    writeSync(fd, `${JSON.stringify(report)}\n`);
  } catch {
    // The launcher is gone, and this process with it.
  }
}

function statusDescriptor(): number | undefined {
  if (settings.launcherPid !== String(process.ppid)) return undefined;
  const fd = Number(settings.statusFd);
  return Number.isInteger(fd) && fd > 2 ? fd : undefined;
}

/** Tells the launcher that this rank ends early because it was asked to. */
export function reportStop(signal: StopSignal): void {
  const fd = statusDescriptor();
  if (fd !== undefined) reportTo(fd, { stopped: signal });
}

/** Once per process: before the script in a rank of our launcher, else when the process becomes a rank. */
export function watchForFailure(): void {
  if (failure.installed) return;
  failure.installed = true;
  const fd = statusDescriptor();
  const report = (error: unknown): void => {
    if (process.listenerCount('uncaughtException') > 1) return; // the program handles its errors itself
    reportTo(fd!, errorReport(error, inspect(error)));
    process.exit(1);
  };
  process.on('uncaughtExceptionMonitor', (error) => {
    failure.reason = error instanceof Error ? error.message : String(error);
    if (fd === undefined || !(error instanceof SyntaxError)) return;
    // Only Node itself can print the line at fault.
    reportTo(fd, errorReport(error, ''));
    process.off('uncaughtException', report);
  });
  if (fd !== undefined) process.on('uncaughtException', report);
}
