// Whether ops record a graph.
let enabled = true;

export function isGradEnabled(): boolean {
  return enabled;
}

/** @internal */
export function withGrad<T>(value: boolean, fn: () => T): T {
  const previous = enabled;
  enabled = value;
  let result: T;
  try {
    result = fn();
  } catch (error) {
    enabled = previous;
    throw error;
  }
  if (result instanceof Promise) {
    return result.finally(() => {
      enabled = previous;
    }) as T;
  }
  enabled = previous;
  return result;
}

/** Runs `fn` without recording a graph, as torch.no_grad. An async `fn` keeps it off until its promise settles. */
export function noGrad<T>(fn: () => T): T {
  return withGrad(false, fn);
}
