// Loaded before the script in ranks of our launcher (`node --import`): failures are reported from the first line on, and the
// addon binds the rank's life to its launcher's.
import { watchForFailure } from './failure.ts';

watchForFailure();
try {
  await import('../native.ts');
} catch {
  // A script that uses rankzero gets this error where it imports it.
}
