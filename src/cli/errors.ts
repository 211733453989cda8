// How the commands show errors: one that the user can act on has a message that says all; a bug shows its stack.
import { inspect } from 'node:util';
import { settings } from '../environment.ts';

/** Errors that no input should cause. With RANKZERO_DEBUG every error counts as one. */
export function isBug(error: unknown): boolean {
  if (settings.debug || !(error instanceof Error)) return true;
  return error instanceof TypeError || error instanceof ReferenceError || error instanceof SyntaxError;
}

/** The text of an error for a terminal. */
export function describeError(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  return isBug(error) ? (error.stack ?? error.message) : error.message;
}

/** The same error without stack and properties, for the launcher, which prints what a rank died of. Bugs stay as they are. */
export function withoutStack(error: unknown): unknown {
  if (isBug(error)) return error;
  const { message, code } = error as Error & { code?: string };
  const plain = new Error(message);
  // The launcher tells causes from consequences by the code, and prints what `inspect` makes of the error.
  return Object.defineProperties(plain, {
    code: { value: code },
    [inspect.custom]: { value: () => `Error: ${message}` },
  });
}
