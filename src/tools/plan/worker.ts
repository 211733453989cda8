// The process that runs a plan dry, for planRun.
import type { Measurement } from './measure.ts';
import type { Answer } from './plan.ts';

async function answer(measurement: Measurement): Promise<Answer> {
  try {
    const { measure } = await import('./measure.ts');
    return { report: await measure(measurement) };
  } catch (error) {
    const { name, message, stack } = error as Error;
    const isBug = error instanceof TypeError || error instanceof ReferenceError;
    return { error: { name, message: isBug ? (stack ?? message) : message } };
  }
}

process.once('message', async (measurement: Measurement) => {
  const message = await answer(measurement);
  process.send!(message, () => process.disconnect());
});
