// Models without memory.
import { withMetaParameters } from './parameter.ts';

/**
 * Runs `fn` so that every parameter created in it is on meta: no memory, no values. Buffers stay real (rotary tables are
 * computed from the config on every rank). Mirrors accelerate's init_empty_weights. `fn` is synchronous.
 */
export function initEmptyWeights<T>(fn: () => T): T {
  const result = withMetaParameters(fn);
  if (result instanceof Promise)
    throw new TypeError('initEmptyWeights: the function must not be async (use fromConfig, not fromPretrained)');
  return result;
}
