// Learning-rate schedules, as Transformers' get_scheduler: linear warm-up, then constant, linear or cosine decay to zero.
export type ScheduleName = 'constant' | 'linear' | 'cosine';

/** The factor on the base rate for update `step` (0 is the first of `totalSteps`). */
export function scheduleFactor(name: ScheduleName, step: number, totalSteps: number, warmupSteps = 0): number {
  if (step < warmupSteps) return step / Math.max(1, warmupSteps);
  if (name === 'constant') return 1;
  const progress = (step - warmupSteps) / Math.max(1, totalSteps - warmupSteps);
  if (name === 'linear') return Math.max(0, 1 - progress);
  return Math.max(0, 0.5 * (1 + Math.cos(Math.PI * progress)));
}
