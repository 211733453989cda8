// `finally` for functions that may be async.

/**
 * Runs `fn`, then `close`: when the promise settles, if `fn` returns one. `close` gets the value, or undefined after an
 * error, and runs once; what it throws replaces the result.
 */
export function settle<T>(fn: () => T, close: (value: Awaited<T> | undefined) => void): T {
  let result: T;
  try {
    result = fn();
  } catch (error) {
    close(undefined);
    throw error;
  }
  if (result instanceof Promise) {
    return result.then(
      (value: Awaited<T>) => {
        close(value);
        return value;
      },
      (error) => {
        close(undefined);
        throw error;
      },
    ) as T;
  }
  close(result as Awaited<T>);
  return result;
}
